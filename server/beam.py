"""Beam search over logprobs, step by step; it knows nothing of engines.

Of all ways to go on with all beams the likeliest are looked at, best first: those that end an
answer are put aside, and the first ``width`` others are the beams of the next step (see Graves,
"Sequence Transduction with Recurrent Neural Networks", 2012; the rule is transformers'). A beam's
score is its logprob / length ** length_penalty, the token that ends it counted.
"""

from __future__ import annotations

import math
import uuid
from bisect import insort
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


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """A beam's last logprobs, and those before, which it shares with other beams."""

    before: _Link | None
    last: TokenLogprobs


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """One answer, as far as it has come."""

    token_ids: tuple[int, ...] = ()
    links: _Link | None = None
    total: float = 0.0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """One entry a token."""
        found, link = [], self.links
        while link is not None:
            found.append(link.last)
            link = link.before
        return found[::-1]

    def score(self, length_penalty: float) -> float:
        """What beams of different lengths are compared by."""
        return _score(self.total, len(self.token_ids), length_penalty)


@dataclass(slots=True)
class _Step:
    """One way to go on with a beam."""

    beam: Beam
    report: TokenLogprobs
    place: int
    total: float

    @property
    def token_id(self) -> int:
        return self.report.top_token_ids[self.place]

    def chosen(self, num_top: int) -> TokenLogprobs:
        """Its token's logprobs, with so many alternatives."""
        report, place = self.report, self.place
        return TokenLogprobs(
            self.token_id,
            report.top_logprobs[place],
            place + 1,
            report.top_token_ids[:num_top],
            report.top_logprobs[:num_top],
        )


class BeamSearch:
    """The search for one prompt's answers; ``live`` is to be advanced until ``done``.

    ``params`` has the ends, ``min_tokens`` and ``max_tokens``; ``eos_token_ids`` are the model's.
    ``num_computed`` tokens were asked for so far: one of each live beam in each step.
    """

    def __init__(
        self,
        terms: BeamTerms,
        params: SamplingParams,
        eos_token_ids: Sequence[int],
        room: int,
        vocab_size: int,
    ) -> None:
        self._terms = terms
        self._params = params
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._end_token_ids = self._eos_token_ids.union(params.stop_token_ids)
        self._max_tokens = min(params.max_tokens or room, room)
        self._vocab_size = vocab_size
        self._ended: list[Beam] = []
        self.live = [Beam()]
        self.num_computed = 0

    @property
    def done(self) -> bool:
        """Whether no beam can go on to be among the best."""
        return not self.live

    @property
    def num_logprobs(self) -> int:
        """What the next step of each beam has to report.

        Were half of them ends, ``width`` go on; ends that must not come yet are beside them.
        """
        most = 2 * self._terms.width
        if self._next_length < self._params.min_tokens:
            most += len(self._end_token_ids)
        return min(max(most, self._params.logprobs or 0), self._vocab_size)

    def advance(self, reports: Sequence[TokenLogprobs]) -> None:
        """Go one token further; ``reports`` are of the token behind each live beam."""
        self.num_computed += len(self.live)
        ways = self._ways(reports)
        ends, length = self._end_token_ids, self._next_length
        # Where the ends are the whole vocabulary, nothing else can be said: they end it early.
        is_early = length < self._params.min_tokens
        may_end = not is_early or all(reports[i].top_token_ids[j] in ends for _, i, j in ways)
        live: list[Beam] = []
        for total, index, place in ways:
            if len(live) == self._terms.width:
                break
            step = _Step(self.live[index], reports[index], place, -total)
            if step.token_id in ends:
                if may_end:
                    is_eos = step.token_id in self._eos_token_ids
                    self._end(step, "stop", None if is_eos else step.token_id)
            elif length < self._max_tokens:
                live.append(self._taken(step))
            elif not self._end(step, "length"):
                break
        self.live = live
        if self._is_settled():
            self.live = []

    def best(self, num_beams: int) -> list[Beam]:
        """The best ended beams, best first."""
        return self._ended[:num_beams]

    @property
    def _next_length(self) -> int:
        return len(self.live[0].token_ids) + 1

    def _ways(self, reports: Sequence[TokenLogprobs]) -> list[tuple[float, int, int]]:
        """All ways to go on, best first: minus the logprob, the beam's index, the place in its."""
        return sorted(
            [
                (-total - logprob, index, place)
                for index, (total, report) in enumerate(
                    zip([beam.total for beam in self.live], reports, strict=True)
                )
                for place, logprob in enumerate(report.top_logprobs)
                if logprob > -math.inf
            ]
        )

    def _taken(
        self, step: _Step, reason: FinishReason | None = None, stop: int | None = None
    ) -> Beam:
        token_ids = (*step.beam.token_ids, step.token_id)
        chosen = step.chosen(self._params.logprobs or 0)
        return Beam(token_ids, _Link(step.beam.links, chosen), step.total, reason, stop)

    def _end(self, step: _Step, reason: FinishReason, stop: int | None = None) -> bool:
        """Put an ended beam aside, if it is among the ``width`` best so far, or return False."""
        penalty, width = self._terms.length_penalty, self._terms.width
        score = _score(step.total, self._next_length, penalty)
        if len(self._ended) == width and score <= self._ended[-1].score(penalty):
            return False
        ended = self._taken(step, reason, stop)
        insort(self._ended, ended, key=lambda beam: -beam.score(penalty))
        del self._ended[width:]
        return True

    def _is_settled(self) -> bool:
        """Whether the best that a live beam may come to is under all that have ended.

        A logprob only falls; what it is divided by is most at the longest, or the next, length.
        """
        if not self.live or len(self._ended) < self._terms.width:
            return not self.live
        penalty = self._terms.length_penalty
        length = self._max_tokens if penalty > 0 else self._next_length
        most = _score(max(beam.total for beam in self.live), length, penalty)
        return most <= self._ended[-1].score(penalty)


def step_request(generation: GenerationRequest, beam: Beam, num_logprobs: int) -> GenerationRequest:
    """What asks an engine for the token behind a beam.

    The beam goes as output that was generated before: it shares the KV blocks of the prompt and of
    the beam that it came from through the prefix cache, and its adapter starts where it did.
    """
    params = replace(
        generation.params,
        temperature=0.0,
        logprobs=num_logprobs,
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
        logprobs=beam.logprobs,
        finish_reason=beam.finish_reason,
        stop_token_id=beam.stop_token_id,
        num_cached_tokens=num_cached_tokens,
    )


def _score(total: float, length: int, length_penalty: float) -> float:
    return float(total / length**length_penalty)
