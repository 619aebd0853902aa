"""Compiled grammars and tokenizers, the least lately used forgotten first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ..types import Grammar
from .compiler import compile_grammar
from .vocabulary import GrammarTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_GRAMMARS, MAX_TEXT_BYTES, MAX_TOKENIZERS = 1024, 32 << 20, 32
"""A compiled grammar takes some tens of bytes for each of its text."""

T = TypeVar("T")


class GrammarKey(NamedTuple):
    """What a compiled grammar is found by; ``vocabulary`` is the path of a vocabulary's file."""

    vocabulary: str
    grammar: Grammar


class Compiled(NamedTuple):
    """A matcher that nobody moves, to be copied for each request, and whose tokens it has.

    ``seconds`` is what it took.
    """

    matcher: LLMatcher
    tokenizer: GrammarTokenizer
    seconds: float = 0.0


class RecentlyUsed(Generic[T]):
    """Values by key, bounded by count and by the sum of their sizes."""

    def __init__(self, max_count: int, max_size: int = 1 << 60) -> None:
        self._max_count, self._max_size = max_count, max_size
        self._entries: OrderedDict[object, tuple[T, int]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: object) -> T | None:
        """A value, which is now the last to be forgotten."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: object, value: T, size: int = 0) -> None:
        """Keep a value, and forget what is over the bounds; one alone always stays."""
        self.remove(key)
        self._entries[key] = (value, size)
        self._size += size
        while len(self) > 1 and (len(self) > self._max_count or self._size > self._max_size):
            self.remove(next(iter(self._entries)))

    def remove(self, key: object) -> None:
        """Forget a value, if it is there."""
        _, size = self._entries.pop(key, (None, 0))
        self._size -= size


class GrammarCache:
    """Compiles each grammar once, in threads; ``get`` and ``start`` are for one thread.

    What can't be compiled is not kept: its requests end with it.
    """

    def __init__(self, eos_token_ids: tuple[int, ...], num_threads: int = 2) -> None:
        self._eos_token_ids = eos_token_ids
        self._num_threads = num_threads
        self._threads: ThreadPoolExecutor | None = None
        self._tokenizers: RecentlyUsed[Future[GrammarTokenizer]] = RecentlyUsed(MAX_TOKENIZERS)
        self._grammars: RecentlyUsed[Compiled] = RecentlyUsed(MAX_GRAMMARS, MAX_TEXT_BYTES)

    def __len__(self) -> int:
        return len(self._grammars)

    def get(self, key: GrammarKey) -> Compiled | None:
        """A grammar that is compiled."""
        return self._grammars.get(key)

    def start(self, key: GrammarKey) -> Future[Compiled]:
        """Compile one; its result is for ``put``. It raises RequestError or OSError."""
        tokenizer = self._tokenizer(key.vocabulary)
        return self._submit(lambda: self._compile(key, tokenizer))

    def put(self, key: GrammarKey, compiled: Compiled) -> None:
        """Keep what ``start`` gave."""
        self._grammars.put(key, compiled, len(key.grammar.text.encode()))

    def _compile(self, key: GrammarKey, tokenizer: Future[GrammarTokenizer]) -> Compiled:
        # It is in a thread's hands already, before this came to the next: no deadlock.
        ready = tokenizer.result()
        started = time.perf_counter()
        matcher = compile_grammar(key.grammar, ready)
        return Compiled(matcher, ready, time.perf_counter() - started)

    def _tokenizer(self, path: str) -> Future[GrammarTokenizer]:
        known = self._tokenizers.get(path)
        if known is not None and not (known.done() and known.exception() is not None):
            return known
        future = self._submit(lambda: GrammarTokenizer.read(path, self._eos_token_ids))
        self._tokenizers.put(path, future)
        return future

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._num_threads, "grammar")
        return self._threads.submit(work)
