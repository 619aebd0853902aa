"""Prompts through an engine in this process, until every choice of each has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..engine.loop import EngineLoop
from ..engine.types import FinishReason, TokenLogprobs, TokenOutput
from .generation import ChoiceRequest
from .text.detokenizer import Detokenizer, TextDelta
from .text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer. ``stop_reason`` is the stop string or stop token id that ended it.

    ``error`` says what went wrong where ``finish_reason`` is ``error``. ``cumulative_logprob`` is
    there where logprobs are.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    error: str | None = None
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answers to one prompt; ``prompt`` is None where token ids were given.

    ``num_cached_tokens`` of the prompt were found in the prefix cache by every choice.
    ``prompt_logprobs``, where they are asked for, are one entry a token, the first None.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    adapter: str | None
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(slots=True)
class Job:
    """One prompt: its choices, and their outputs as they end."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    adapter: str | None
    tokenizer: Tokenizer
    choices: Sequence[ChoiceRequest]
    outputs: dict[int, CompletionOutput] = field(default_factory=dict)
    num_cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return len(self.outputs) == len(self.choices)

    def output(self) -> RequestOutput:
        """The finished answers, in the order of the choices."""
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            self.adapter,
            [self.outputs[index] for index in range(len(self.choices))],
            self.num_cached_tokens or 0,
            self.prompt_logprobs,
        )

    def begin(self, num_cached_tokens: int) -> None:
        """A choice has its first token, and found so much of the prompt in the cache."""
        least = num_cached_tokens if self.num_cached_tokens is None else self.num_cached_tokens
        self.num_cached_tokens = min(least, num_cached_tokens)


class BatchRun:
    """Runs jobs to their end; nothing of them stays in the engine, however it ends."""

    def __init__(self, engine: EngineLoop, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._live: dict[str, _Choice] = {}
        for job in jobs:
            for choice in job.choices:
                request = choice.generation
                detokenizer = Detokenizer(job.tokenizer, request.prompt_token_ids, request.params)
                self._live[request.request_id] = _Choice(job, choice, detokenizer)

    def complete(self, on_done: Callable[[int], object]) -> None:
        """Step until all is done; ``on_done`` hears the number of jobs that just ended.

        Raises RequestError, before any step, for a request that the engine can't take.
        """
        try:
            for choice in list(self._live.values()):
                for refused in self._engine.add(choice.choice.generation):
                    self._take(refused, on_done)
            while self._live:
                assert self._engine.has_work, "a request left the engine without an output"
                for output in self._engine.step():
                    self._take(output, on_done)
        finally:
            for request_id in self._live:
                self._engine.abort(request_id)

    def _take(self, output: TokenOutput, on_done: Callable[[int], object]) -> None:
        choice = self._live.get(output.request_id)
        if choice is None:
            return
        choice.add(choice.detokenizer.push(output))
        if not choice.detokenizer.finished:
            return
        del self._live[output.request_id]
        if output.finish_reason is None:  # a stop string, of which the engine knows nothing
            self._engine.abort(output.request_id)
        choice.job.outputs[choice.choice.index] = choice.finished(output.error)
        if choice.job.done:
            on_done(1)


class _Choice:
    """One choice on its way."""

    def __init__(self, job: Job, choice: ChoiceRequest, detokenizer: Detokenizer) -> None:
        self.job = job
        self.choice = choice
        self.detokenizer = detokenizer
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._last: TextDelta | None = None

    def add(self, delta: TextDelta) -> None:
        if self._last is None and delta.token_ids:
            self.job.begin(delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.job.prompt_logprobs = delta.prompt_logprobs
        self._text.append(delta.text)
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs or ()
        self._last = delta

    def finished(self, error: str | None) -> CompletionOutput:
        assert self._last is not None
        assert self._last.finish_reason is not None
        wants_logprobs = self.choice.generation.params.logprobs is not None
        return CompletionOutput(
            self.choice.index,
            "".join(self._text),
            self._token_ids,
            self._logprobs if wants_logprobs else None,
            self._last.finish_reason,
            self._last.stop_reason,
            error,
            sum(entry.logprob for entry in self._logprobs) if wants_logprobs else None,
        )
