"""The requests that have a grammar: those that wait for it, and where the others stand in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from ..errors import RequestError
from ..plan import ScheduledChunk
from ..types import GenerationRequest, Grammar, TokenOutput
from .cache import Compiled, GrammarCache, GrammarKey
from .masks import MaskThreads, PendingMasks
from .matching import RequestGrammar

MAX_WAITING = 4096
MAX_WAITING_BYTES = 64 << 20
"""Of the texts of grammars that are being compiled, or wait for it."""


class Grammars:
    """Used by the engine's thread alone; compiling and masks are other threads' work.

    A request is ``open`` from its arrival to its end.
    """

    def __init__(self, eos_token_ids: Iterable[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._cache = GrammarCache(self._eos_token_ids)
        self._masks = MaskThreads()
        self._by_request: dict[str, RequestGrammar] = {}
        self._compiling: dict[GrammarKey, Future[Compiled]] = {}
        self._texts: dict[GrammarKey, Grammar] = {}
        self._num_bytes = 0
        self._waiting: dict[str, tuple[GrammarKey, GenerationRequest]] = {}
        self.num_compiled = 0
        self.num_failed = 0
        self.num_hits = 0
        self.compile_seconds = 0.0

    @property
    def num_open(self) -> int:
        """Requests that have their grammar and have not ended."""
        return len(self._by_request)

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is being compiled."""
        return len(self._waiting)

    def is_full_for(self, request: GenerationRequest) -> bool:
        """Whether a request can't be opened now, since too much waits; raises RequestError."""
        key = self._key(request)
        if self._cache.get(key) is not None:
            return False
        if max(len(self._waiting), len(self._compiling)) >= MAX_WAITING:
            return True
        num_bytes = self._num_bytes + sys.getsizeof(key.grammar.text)
        return num_bytes > MAX_WAITING_BYTES and key not in self._compiling

    def open(self, request: GenerationRequest) -> bool:
        """Take in a request that has a grammar; whether it can be scheduled at once.

        If not, ``advance`` gives it later. Raises RequestError.
        """
        key = self._key(request)
        if request.request_id in self._waiting or request.request_id in self._by_request:
            raise RequestError("request_id", f"{request.request_id!r} is in use")
        compiled = self._cache.get(key)
        if compiled is not None:
            self.num_hits += 1
            self._enter(request, compiled)
            return True
        if key in self._compiling:
            self.num_hits += 1
        else:
            self._compiling[key] = self._cache.start(key)
            self._texts[key] = key.grammar
            self._num_bytes += sys.getsizeof(key.grammar.text)
        # Each choice has come with a text of its own: one is kept of all that are equal.
        params = replace(request.params, grammar=self._texts[key])
        key = GrammarKey(key.vocabulary, self._texts[key])
        self._waiting[request.request_id] = (key, replace(request, params=params))
        return False

    def advance(self) -> tuple[list[GenerationRequest], list[TokenOutput]]:
        """Requests whose grammar is there now, and the ends of those whose grammar can't be."""
        ready: list[GenerationRequest] = []
        refused: list[TokenOutput] = []
        done = {key: future for key, future in self._compiling.items() if future.done()}
        for key, future in done.items():
            del self._compiling[key]
            self._num_bytes -= sys.getsizeof(self._texts.pop(key).text)
            compiled, error = self._settle(key, future)
            for request in [request for k, request in self._waiting.values() if k == key]:
                del self._waiting[request.request_id]
                if compiled is None:
                    refused.append(refusal(request.request_id, error))
                else:
                    self._enter(request, compiled)
                    ready.append(request)
        return ready, refused

    def begin_masks(self, chunks: Sequence[ScheduledChunk]) -> PendingMasks | None:
        """Begin to work out what a step's rows (``chunks`` that sample) may choose."""
        return self._masks.begin(chunks, self._by_request)

    def close(self, request_id: str) -> bool:
        """Forget a request that has ended; whether it still waited for its grammar."""
        self._by_request.pop(request_id, None)
        return self._waiting.pop(request_id, None) is not None

    def note(self, outputs: Iterable[TokenOutput]) -> None:
        """Forget the requests that end with these."""
        if self._by_request:
            for output in outputs:
                if output.finish_reason is not None:
                    self.close(output.request_id)

    def stats(self) -> dict[str, Any]:
        """Fields of ``EngineStats``."""
        return {
            "num_waiting_for_grammar": len(self._waiting),
            "num_cached_grammars": len(self._cache),
            "num_grammar_hits": self.num_hits,
            "num_compiled_grammars": self.num_compiled,
            "num_failed_grammars": self.num_failed,
            "grammar_compile_seconds": self.compile_seconds,
            "grammar_wait_seconds": self._masks.wait_seconds,
        }

    def _key(self, request: GenerationRequest) -> GrammarKey:
        grammar = request.params.grammar
        assert grammar is not None
        if request.vocabulary is None:
            raise RequestError("grammar", "needs to come with a vocabulary")
        if not self._eos_token_ids:
            raise RequestError("grammar", "can't be had: this model has no token that ends a text")
        return GrammarKey(request.vocabulary, grammar)

    def _enter(self, request: GenerationRequest, compiled: Compiled) -> None:
        grammar = RequestGrammar(compiled, request.params, self._eos_token_ids)
        self._by_request[request.request_id] = grammar

    def _settle(self, key: GrammarKey, future: Future[Compiled]) -> tuple[Compiled | None, str]:
        error = future.exception()
        if error is not None:
            self.num_failed += 1
            text = str(error) if isinstance(error, RequestError) else f"grammar: {error}"
            return None, text
        compiled = future.result()
        self.num_compiled += 1
        self.compile_seconds += compiled.seconds
        self._cache.put(key, compiled)
        return compiled, ""


def overload(request_id: str) -> TokenOutput:
    """The end of a request that has come while too many wait for their grammars."""
    error = "the queue is full: too many requests wait for their grammars"
    return replace(refusal(request_id, error), error_kind="overloaded")


def refusal(request_id: str, error: str) -> TokenOutput:
    """The end of a request that can't be served."""
    return TokenOutput(
        request_id=request_id,
        token_ids=[],
        finish_reason="error",
        error=error,
        error_kind="refused",
    )
