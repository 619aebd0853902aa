"""Prefix keys of the requests that come here, tied to the blocks that hold their KV.

Nobody waits for them: they are made on a thread of their own, one request behind the other, and
where too many wait already a request is left without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ...engine.types import EngineInfo
from ...gateway.fleet.key_answer import KeyAnswer, encode_answer
from ...gateway.prefix_keys import PrefixHasher
from .keys_table import KeyTable, Tie
from .keys_ties import BlockNames, KeyedPrompt, TiedPrompt, TieMaker

MAX_WAITING = 256

T = TypeVar("T")

logger = logging.getLogger(__name__)


class AnswerKeys:
    """One choice's text and tokens, until it ends and its keys can be made."""

    def __init__(self, finish: Callable[[str, list[int]], None]) -> None:
        self._finish = finish
        self._texts: list[str] = []
        self._token_ids: list[int] = []

    def add(self, text: str, token_ids: Sequence[int], finish_reason: str | None) -> None:
        """Take what came; the last one comes with its reason."""
        self._texts.append(text)
        self._token_ids += token_ids
        if finish_reason in ("stop", "length"):
            self._finish("".join(self._texts), self._token_ids)


class PrefixKeys:
    """The keys of one replica; all methods are called on the event loop's thread."""

    def __init__(self, epoch: str, hasher: PrefixHasher, names: BlockNames) -> None:
        self.table = KeyTable(epoch)
        self.num_skipped = 0
        self._maker = TieMaker(hasher, names)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefix-keys")
        self._num_waiting = 0
        self._closed = False

    @classmethod
    def of(
        cls, epoch: str, secret: bytes, info: EngineInfo, *, isolate_tenants: bool
    ) -> PrefixKeys:
        """For an engine; ``secret`` is the sha256 of the fleet's."""
        names = BlockNames(info.model, info.block_size, isolate_tenants)
        return cls(epoch, PrefixHasher(secret), names)

    @property
    def sequence(self) -> int:
        """Batches of events so far, for the replica's report."""
        return self.table.sequence

    def answer(self, epoch: str | None = None, after: int | None = None) -> bytes:
        """The body of ``GET /fleet/keys``, for a reader that knows all up to ``after``."""
        events = None
        if epoch is not None and after is not None:
            events = self.table.events_after(epoch, after)
        if events is None:
            return encode_answer(KeyAnswer(snapshot=self.table.snapshot()))
        return encode_answer(KeyAnswer(events=events))

    def open(self, prompt: KeyedPrompt) -> Callable[[], AnswerKeys] | None:
        """Have the keys of a prompt made; what is given back opens those of each of its choices.

        None where there are none to be made.
        """
        tied = self._submit(partial(self._maker.of_prompt, prompt), lambda tied: tied.ties)
        if tied is None or prompt.uses_base_prefix:
            return None
        return lambda: AnswerKeys(partial(self._close, prompt, tied))

    def close(self) -> None:
        """Make no more keys."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _close(
        self, prompt: KeyedPrompt, tied: Future[TiedPrompt], text: str, token_ids: list[int]
    ) -> None:
        def make() -> list[Tie]:
            return self._maker.of_answer(prompt, tied.result(timeout=0), text, token_ids)

        self._submit(make, lambda ties: ties)

    def _submit(self, make: Callable[[], T], ties_of: Callable[[T], list[Tie]]) -> Future[T] | None:
        if self._closed or self._num_waiting >= MAX_WAITING:
            self.num_skipped += 1
            return None
        loop = asyncio.get_running_loop()
        future = self._thread.submit(make)
        self._num_waiting += 1

        def made(done: Future[T]) -> None:
            loop.call_soon_threadsafe(self._take, done, ties_of)

        future.add_done_callback(made)
        return future

    def _take(self, done: Future[T], ties_of: Callable[[T], list[Tie]]) -> None:
        self._num_waiting -= 1
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self.table.tie(ties_of(done.result()))
        else:  # never its text, which may be a prompt's
            logger.error("prefix keys could not be made: %s", type(error).__name__)
