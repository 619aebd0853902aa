"""How requests went at one replica lately."""

from __future__ import annotations

from typing import Literal

from ..types import Outcome
from .rules import AGAINST, AGAINST_PATH, HealthRules


class FailureCount:
    """Failures in a row, and a share of failures that forgets with a half-life."""

    def __init__(self, rules: HealthRules) -> None:
        self._rules = rules
        self.clear()

    def clear(self) -> None:
        """As at the start."""
        self._num_in_a_row = 0
        self._num_path_in_a_row = 0
        self._num_good = 0.0
        self._num_bad = 0.0
        self._counted_at = 0.0

    def note(self, now: float, outcome: Outcome) -> None:
        """Count what speaks for or against the replica; the rest is the client's."""
        if outcome != "ok" and outcome not in AGAINST:
            return
        self._decay(now)
        if outcome == "ok":
            self._num_in_a_row = self._num_path_in_a_row = 0
            self._num_good += 1.0
            return
        self._num_in_a_row += 1
        self._num_path_in_a_row = self._num_path_in_a_row + 1 if outcome in AGAINST_PATH else 0
        self._num_bad += 1.0

    def verdict(self) -> Literal["unreachable", "failing"] | None:
        """What the counts say."""
        rules = self._rules
        if self._num_path_in_a_row >= rules.path_failures_in_a_row:
            return "unreachable"
        if self._num_in_a_row >= rules.failures_in_a_row:
            return "failing"
        num_outcomes = self._num_good + self._num_bad
        is_many = num_outcomes >= rules.min_outcomes
        return "failing" if is_many and self._num_bad > rules.failure_share * num_outcomes else None

    def _decay(self, now: float) -> None:
        elapsed = max(now - self._counted_at, 0.0)
        factor = 0.5 ** min(elapsed / self._rules.outcome_half_life, 60.0)
        self._num_good *= factor
        self._num_bad *= factor
        self._counted_at = now
