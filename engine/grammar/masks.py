"""Which tokens the rows of one step may choose, worked out in threads beside its forward pass."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..plan import ScheduledChunk
from .matching import WORD, AllowedTokens, RequestGrammar

MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What some rows [M] of logits [N, V] may be, as ``ops.apply_token_mask`` takes it.

    bits [M, ceil(V / 32)]. ``errors`` are of rows that may be nothing, ``must_end`` are rows that
    may be nothing but an end.
    """

    rows: npt.NDArray[np.int64]
    bits: npt.NDArray[np.int32]
    errors: Mapping[int, str]
    must_end: frozenset[int]


def all_allowed(num_rows: int, vocab_size: int) -> TokenMasks:
    """Masks that leave every row as it is."""
    bits = np.full((num_rows, -(-vocab_size // WORD)), -1, np.int32)
    return TokenMasks(np.arange(num_rows, dtype=np.int64), bits, {}, frozenset())


class MaskThreads:
    """Threads that work masks out; there are none before the first."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self.wait_seconds = 0.0

    def begin(
        self, chunks: Sequence[ScheduledChunk], grammars: Mapping[str, RequestGrammar]
    ) -> PendingMasks | None:
        """Begin with those of the rows whose tokens so far are known; None if none has a grammar.

        ``chunks`` are the sampling ones, ``grammars`` those of requests by id.
        """
        if not grammars:
            return None
        rows = {
            row: (chunk, grammars[chunk.request.request_id])
            for row, chunk in enumerate(chunks)
            if chunk.request.request_id in grammars
        }
        return PendingMasks(self, rows) if rows else None

    def submit(
        self, chunk: ScheduledChunk, grammar: RequestGrammar, pending: Sequence[int]
    ) -> Future[AllowedTokens]:
        """Have one row worked out; ``pending`` is a token that its request has not taken in."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "mask")
        tokens = [*chunk.request.output_token_ids, *pending]
        params = chunk.request.params
        must_wait = params.ignore_eos or len(tokens) < params.min_tokens
        return self._threads.submit(_allow, grammar, tokens, must_wait)


class PendingMasks:
    """One step's masks, under way."""

    def __init__(
        self, threads: MaskThreads, rows: Mapping[int, tuple[ScheduledChunk, RequestGrammar]]
    ) -> None:
        self._threads = threads
        self._rows = rows
        self._futures = {
            row: threads.submit(chunk, grammar, ())
            for row, (chunk, grammar) in rows.items()
            if chunk.follows is None
        }

    def result(self, vocab_size: int, previous: Callable[[], Sequence[int]]) -> TokenMasks | None:
        """Wait for them; None where they would change nothing.

        Only for rows that follow the step before are that one's tokens waited for (``previous``).
        """
        following = [row for row, (chunk, _) in self._rows.items() if chunk.follows is not None]
        tokens = previous() if following else ()
        for row in following:
            chunk, grammar = self._rows[row]
            assert chunk.follows is not None
            token_id = tokens[chunk.follows]
            self._futures[row] = self._threads.submit(chunk, grammar, (token_id,))
        started = time.perf_counter()
        allowed = {row: future.result() for row, future in self._futures.items()}
        self._threads.wait_seconds += time.perf_counter() - started
        return _pack(allowed, vocab_size)


def _allow(grammar: RequestGrammar, tokens: Sequence[int], must_wait: bool) -> AllowedTokens:
    try:
        return grammar.allow(tokens, must_wait)
    except BaseException as error:  # a panic in Rust is none of Exception; it ends one request
        return AllowedTokens(error=f"failed: {type(error).__name__}: {error}"[:500])


def _pack(allowed: Mapping[int, AllowedTokens], vocab_size: int) -> TokenMasks | None:
    masked = {row: some for row, some in sorted(allowed.items()) if some.bits is not None}
    errors = {row: f"grammar: {some.error}" for row, some in allowed.items() if some.error}
    rows = sorted({*masked, *errors})
    if not rows:
        return None
    bits = np.zeros((len(rows), -(-vocab_size // WORD)), np.uint32)
    for target, row in zip(bits, rows, strict=True):
        own = masked[row].bits if row in masked else None
        if own is not None:
            width = min(len(own), len(target))
            target[:width] = own[:width]
    must_end = frozenset(row for row, some in masked.items() if some.must_end)
    return TokenMasks(np.array(rows, np.int64), bits.view(np.int32), errors, must_end)
