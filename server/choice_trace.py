"""The spans of one choice: how long it waited, its prompt's steps, the steps of its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..engine.types import GenerationRequest, TokenOutput
from ..gateway.fleet.tracing import Span, Tracer


class ChoiceTracing:
    """Makes traces under the request's span; ``num_steps`` counts the engine's steps so far."""

    def __init__(self, tracer: Tracer, num_steps: Callable[[], int]) -> None:
        self._tracer = tracer
        self._num_steps = num_steps

    @contextmanager
    def trace(self, generation: GenerationRequest) -> Iterator[ChoiceTrace | None]:
        """The trace of one choice, ended on leaving; None where the request has no span."""
        span = self._tracer.current()
        if span is None:
            yield None
            return
        trace = ChoiceTrace(span, generation, self._num_steps)
        try:
            yield trace
        except Exception as error:
            trace.end(type(error).__name__)
            raise
        finally:
            trace.end()


class ChoiceTrace:
    """``engine.queue``, ``engine.prefill`` and ``engine.decode``, one after the other."""

    def __init__(
        self, request: Span, generation: GenerationRequest, num_steps: Callable[[], int]
    ) -> None:
        self._request = request
        self._generation = generation
        self._num_steps = num_steps
        self._began = time.time()
        self._open: Span | None = None
        self._num_tokens = 0
        self._finish_reason: str | None = None
        self._has_ended = False

    def take(self, output: TokenOutput) -> None:
        """An output has come."""
        if output.token_ids and not self._num_tokens:
            self._begin_answer(output)
        self._num_tokens += len(output.token_ids)
        self._finish_reason = output.finish_reason or self._finish_reason

    def _begin_answer(self, output: TokenOutput) -> None:
        now, queued = time.time(), self._began + (output.queue_seconds or 0.0)
        self._request.child("engine.queue", started=self._began).end(at=queued)
        prompt = {
            "prompt_tokens": len(self._generation.prompt_token_ids),
            "cached_tokens": output.num_cached_tokens,
            "replayed_tokens": len(self._generation.output_token_ids),
            "last_step": self._num_steps(),
        }
        self._request.child("engine.prefill", prompt, started=queued).end(at=now)
        first = {"first_step": self._num_steps(), "choice": self._generation.choice_index}
        self._open = self._request.child("engine.decode", first, started=now)

    def end(self, error: str | None = None) -> None:
        """The choice is over; only the first call counts."""
        if self._has_ended:
            return
        self._has_ended = True
        span = self._open or self._request.child("engine.queue", started=self._began)
        span.set("completion_tokens", self._num_tokens)
        span.set("last_step", self._num_steps())
        span.set("finish_reason", self._finish_reason or "left")
        span.end(error)
