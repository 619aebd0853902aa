"""One step as plain values: what is to be computed, and what was sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .prompt_output import PromptPart
from .request import Request
from .types import ErrorKind, TokenLogprobs


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens [start, start + num_scheduled_tokens) of one request, computed in this step.

    ``samples`` says that the chunk ends at the request's last token and its last row gives the
    next one. ``follows`` is set where the chunk's one token is not known yet: it is the one
    that the step before samples for this row of its logits.
    """

    request: Request
    start: int
    num_scheduled_tokens: int
    samples: bool
    follows: int | None = None

    @property
    def end(self) -> int:
        """The position behind the last one computed."""
        return self.start + self.num_scheduled_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: its chunks, those of one token first, and blocks to clear beforehand.

    ``number`` counts the launched steps from 1 on.
    """

    chunks: tuple[ScheduledChunk, ...]
    zero_block_ids: tuple[int, ...] = ()
    number: int = 0

    def sampling_chunks(self) -> list[ScheduledChunk]:
        """The chunks that give a token, in batch order: the rows of the logits."""
        return [chunk for chunk in self.chunks if chunk.samples]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The sampler's answer for one sampling chunk; ``error`` ends the request instead.

    ``error_kind`` goes with it, as in ``TokenOutput``.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    error_kind: ErrorKind = "failed"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: one entry a sampling chunk, and parts of prompts by request id."""

    sampled: list[SampledToken]
    prompts: Mapping[str, PromptPart] = field(default_factory=dict)
