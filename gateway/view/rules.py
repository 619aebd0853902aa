"""When a replica is out, and how it comes back; all times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..types import Outcome

OutReason = Literal[
    "starting", "draining", "lease", "wedged", "restarted", "gone", "unreachable", "failing"
]
"""Few words, a metric's label.

``lease``: silent; ``wedged``: has work and makes no progress; ``restarted``: another process
now; ``gone``: silent for so long that it is forgotten; ``unreachable``: connections fail or
streams fall silent; ``failing``: it answers, with errors of its own.
"""

LOSES_STREAMS: frozenset[OutReason] = frozenset({"lease", "wedged", "restarted", "gone"})
"""What also ends streams under way. The rest says only that new requests do better elsewhere."""

AGAINST_PATH: frozenset[Outcome] = frozenset({"unreachable", "stalled"})
AGAINST: frozenset[Outcome] = AGAINST_PATH | {"failed"}
"""Outcomes that speak against a replica; a client's mistake or leaving never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """The thresholds.

    A replica with work is wedged after ``stall_seconds`` or ``stall_steps`` times its p99 step
    without progress, whichever is longer; half a second under five, so that with beats and polls
    it is out within five. From ``suspect_seconds`` on it is probed, so that one that waits for
    an adapter, and could go on, shows it. ``max_failing_share`` bounds which part of the fleet
    may be out for how requests went: neither one bad request sent everywhere nor a gateway that is
    too busy to connect in time may end the service. ``quiet_seconds`` of silence make that bound
    void.
    """

    lease_seconds: float = 3.0
    quiet_seconds: float = 1.0
    forget_seconds: float = 60.0
    stall_seconds: float = 4.5
    stall_steps: float = 10.0
    suspect_seconds: float = 1.5
    idle_probe_seconds: float = 5.0
    path_failures_in_a_row: int = 2
    failures_in_a_row: int = 5
    failure_share: float = 0.5
    min_outcomes: float = 10.0
    outcome_half_life: float = 10.0
    max_failing_share: float = 0.5
    first_back_off: float = 1.0
    longest_back_off: float = 30.0
    warm_up_seconds: float = 10.0
    first_warmth: float = 0.1

    def back_off(self, num_ejections: int, chance: float) -> float:
        """Doubles each time; ``chance`` from 0 to 1 spreads it by a fifth either way."""
        # 2**30 seconds are past every bound; more would overflow.
        doubled = self.first_back_off * 2.0 ** min(num_ejections - 1, 30)
        return min(doubled, self.longest_back_off) * (0.8 + 0.4 * chance)

    def stall_limit(self, p99_step_seconds: float) -> float:
        """Seconds without progress that are too many."""
        return max(self.stall_seconds, self.stall_steps * p99_step_seconds)
