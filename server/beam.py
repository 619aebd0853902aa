"""Beam search over logprobs, step by step; it knows nothing of engines.

Of all ways to go on with all beams the likeliest are looked at, best first: those that end an
answer are put aside, and the first ``width`` others are the beams of the next step (see Graves,
"Sequence Transduction with Recurrent Neural Networks", 2012; the rule is transformers'). A beam's
score is its logprob / length ** length_penalty, the token that ends it counted.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..engine.types import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)


@dataclass(frozen=True, slots=True)
class BeamTerms:
    """How beams are searched."""

    width: int
    length_penalty: float = 1.0

    @property
    def num_logprobs(self) -> int:
        """What each step of a beam has to report: were half of them ends, ``width`` go on."""
        return 2 * self.width


@dataclass(frozen=True, slots=True)
class Beam:
    """One answer, as far as it has come."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    total: float = 0.0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None

    def score(self, length_penalty: float) -> float:
        """What beams of different lengths are compared by."""
        return _score(self.total, len(self.token_ids), length_penalty)


@dataclass(frozen=True, slots=True)
class _Step:
    """One way to go on with a beam."""

    beam: Beam
    report: TokenLogprobs
    place: int

    @property
    def token_id(self) -> int:
        return self.report.top_token_ids[self.place]

    @property
    def total(self) -> float:
        return self.beam.total + self.report.top_logprobs[self.place]

    def take(self, reason: FinishReason | None = None, stop: int | None = None) -> Beam:
        report, place = self.report, self.place
        chosen = TokenLogprobs(
            self.token_id,
            report.top_logprobs[place],
            place + 1,
            report.top_token_ids,
            report.top_logprobs,
        )
        token_ids = (*self.beam.token_ids, self.token_id)
        return Beam(token_ids, (*self.beam.logprobs, chosen), self.total, reason, stop)


class BeamSearch:
    """The search for one prompt's answers; ``live`` is to be advanced until ``done``.

    ``params`` has the ends, ``min_tokens`` and ``max_tokens``; ``eos_token_ids`` are the model's.
    """

    def __init__(
        self, terms: BeamTerms, params: SamplingParams, eos_token_ids: Sequence[int], room: int
    ) -> None:
        self._terms = terms
        self._params = params
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._max_tokens = min(params.max_tokens or room, room)
        self._ended: list[Beam] = []
        self.live = [Beam()]

    @property
    def done(self) -> bool:
        """Whether no beam can go on to be among the best."""
        return not self.live

    def advance(self, reports: Sequence[TokenLogprobs]) -> None:
        """Go one token further; ``reports`` are of the token behind each live beam."""
        steps = [
            _Step(beam, report, place)
            for beam, report in zip(self.live, reports, strict=True)
            for place, logprob in enumerate(report.top_logprobs)
            if logprob > -math.inf
        ]
        steps.sort(key=lambda step: -step.total)
        self.live = []
        for step in steps:
            if len(self.live) == self._terms.width:
                break
            self._place(step)
        self._ended = self.best(self._terms.width)
        if self._is_settled():
            self.live = []

    def best(self, num_beams: int) -> list[Beam]:
        """The best ended beams, best first."""
        penalty = self._terms.length_penalty
        return sorted(self._ended, key=lambda beam: -beam.score(penalty))[:num_beams]

    def _place(self, step: _Step) -> None:
        length = len(step.beam.token_ids) + 1
        is_eos, is_stop = (
            step.token_id in ids for ids in (self._eos_token_ids, self._params.stop_token_ids)
        )
        if is_eos or is_stop:
            if length >= self._params.min_tokens:
                self._ended.append(step.take("stop", None if is_eos else step.token_id))
        elif length >= self._max_tokens:
            self._ended.append(step.take("length"))
        else:
            self.live.append(step.take())

    def _is_settled(self) -> bool:
        """Whether the best that a live beam may come to is under all that have ended.

        A logprob only falls; what it is divided by is most at the longest, or the next, length.
        """
        if not self.live or len(self._ended) < self._terms.width:
            return not self.live
        penalty = self._terms.length_penalty
        length = self._max_tokens if penalty > 0 else len(self.live[0].token_ids) + 1
        most = _score(max(beam.total for beam in self.live), length, penalty)
        return most <= self._ended[-1].score(penalty)


def step_request(generation: GenerationRequest, beam: Beam, terms: BeamTerms) -> GenerationRequest:
    """What asks an engine for the token behind a beam.

    The beam goes as output that was generated before: it shares the KV blocks of the prompt and of
    the beam that it came from through the prefix cache, and its adapter starts where it did.
    """
    params = replace(
        generation.params,
        temperature=0.0,
        logprobs=max(terms.num_logprobs, generation.params.logprobs or 0),
        max_tokens=len(beam.token_ids) + 1,
        min_tokens=0,
        ignore_eos=True,
        stop=(),
        stop_token_ids=(),
    )
    return replace(
        generation,
        request_id=uuid.uuid4().hex,
        params=params,
        output_token_ids=list(beam.token_ids),
    )


def as_output(beam: Beam, request_id: str, num_cached_tokens: int) -> TokenOutput:
    """An ended beam as one engine output that has it all."""
    return TokenOutput(
        request_id=request_id,
        token_ids=list(beam.token_ids),
        logprobs=list(beam.logprobs),
        finish_reason=beam.finish_reason,
        stop_token_id=beam.stop_token_id,
        num_cached_tokens=num_cached_tokens,
    )


def _score(total: float, length: int, length_penalty: float) -> float:
    return float(total / length**length_penalty)
