"""A step that the device has been given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .grammar.masks import TokenMasks
from .plan import SampledToken, StepResult
from .prompt_reader import PendingPrompts
from .sampler import NO_TOKEN_LEFT, PendingSample
from .types import ErrorKind


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """Waits for the step only when its result is asked for.

    One without samples ends, on a GPU, when ``end`` is reached: were it taken to be through at
    once, a long prompt's steps would all be launched before anything else could come between.
    """

    pending: PendingSample | None = None
    end: torch.cuda.Event | None = None
    prompts: PendingPrompts | None = None
    refusals: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pending: PendingSample,
        prompts: PendingPrompts | None = None,
        masks: TokenMasks | None = None,
    ) -> LaunchedStep:
        """A step that samples, some rows under the masks of their grammars."""
        return cls(pending=pending, prompts=prompts, refusals=masks.errors if masks else {})

    @classmethod
    def without_samples(
        cls, device: torch.device, prompts: PendingPrompts | None = None
    ) -> LaunchedStep:
        """A step that was the last to be launched, and samples nothing."""
        if device.type != "cuda":
            return cls(prompts=prompts)
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        end.record(torch.cuda.current_stream(device))
        return cls(end=end, prompts=prompts)

    def result(self) -> StepResult:
        """Tokens, and what was read of prompts."""
        if self.end is not None:
            self.end.synchronize()
        sampled = self._sampled()
        return StepResult(sampled, {} if self.prompts is None else self.prompts.result())

    def _sampled(self) -> list[SampledToken]:
        if self.pending is None:
            return []
        sampled = self.pending.result()
        return [
            SampledToken(token_id, sampled.logprobs[row], *self._error(row, sampled.errors))
            for row, token_id in enumerate(sampled.token_ids)
        ]

    def _error(self, row: int, errors: Mapping[int, str]) -> tuple[str | None, ErrorKind]:
        """Why a row has no token, and whose fault that is."""
        error = self.refusals.get(row) or errors.get(row)
        refused = row in self.refusals or error == NO_TOKEN_LEFT
        return error, "refused" if refused else "failed"
