"""A step that the device has been given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .plan import SampledToken
from .sampler import PendingSample


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """Waits for the step only when its result is asked for.

    One without samples ends, on a GPU, when ``end`` is reached: were it taken to be through at
    once, a long prompt's steps would all be launched before anything else could come between.
    """

    pending: PendingSample | None = None
    end: torch.cuda.Event | None = None

    @classmethod
    def of(cls, pending: PendingSample) -> LaunchedStep:
        """A step that samples."""
        return cls(pending=pending)

    @classmethod
    def without_samples(cls, device: torch.device) -> LaunchedStep:
        """A step that was the last to be launched, and samples nothing."""
        if device.type != "cuda":
            return cls()
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        end.record(torch.cuda.current_stream(device))
        return cls(end=end)

    def result(self) -> list[SampledToken]:
        """One entry a sampling chunk."""
        if self.end is not None:
            self.end.synchronize()
        if self.pending is None:
            return []
        sampled = self.pending.result()
        return [
            SampledToken(token_id, sampled.logprobs[row], sampled.errors.get(row))
            for row, token_id in enumerate(sampled.token_ids)
        ]
