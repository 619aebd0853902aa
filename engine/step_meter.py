"""Counts of steps and tokens, and how long the last steps took."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .types import TokenOutput


class StepMeter:
    """Counts steps and tokens and remembers how long the last steps took."""

    def __init__(self, window: int = 1000) -> None:
        self.num_steps = 0
        self.num_failed_steps = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.last_step_seconds = 0.0
        self.p99_step_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=window)

    def record(self, seconds: float, outputs: Sequence[TokenOutput]) -> None:
        """Take in one step; the percentile is renewed every 64 steps."""
        self.num_steps += 1
        self.num_generation_tokens += sum(len(output.token_ids) for output in outputs)
        self.last_step_seconds = seconds
        self._recent.append(seconds)
        if self.num_steps % 64 == 1:
            ranked = sorted(self._recent)
            self.p99_step_seconds = ranked[int(0.99 * (len(ranked) - 1))]
