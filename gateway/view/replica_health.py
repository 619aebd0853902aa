"""Whether one replica may get requests; pure, told the time."""

from __future__ import annotations

from ..fleet.records import ReplicaReport
from ..types import Outcome
from .failure_count import FailureCount
from .rules import HealthRules, OutReason

MAX_GAP_SECONDS = 1.0
"""Of the time between two reports; what is longer, we were blind for."""


class ReplicaHealth:
    """Out for a reason, or up; what it was out for has to be disproved by a probe.

    ``generation`` counts restarts and ejections: an outcome of a request that was sent in an
    earlier one is old news.
    """

    def __init__(self, rules: HealthRules, now: float) -> None:
        self._rules = rules
        self._failures = FailureCount(rules)
        self._report: ReplicaReport | None = None
        self._proved_at = now
        self._reported_at = now
        self._back_off_ends = 0.0
        self._num_ejections = 0
        self._returned_at: float | None = None
        self._is_restart = False
        self.stalled_seconds = 0.0
        """How long it has had work without a step, by reports that came one behind the other."""
        self.generation = 0
        self.ejected_for: OutReason | None = None

    def heard(self, report: ReplicaReport, made_at: float, has_work: bool) -> bool:
        """Take in a newer report; True if it comes from a new process.

        ``has_work``: something of ours waits there for its first byte.
        """
        last, self._report = self._report, report
        elapsed, self._reported_at = made_at - self._reported_at, made_at
        restarted = last is not None and last.epoch != report.epoch
        if restarted:
            self._start_over(made_at)
        if self._is_restart and report.state == "ready":
            self._is_restart = False
            self._returned_at = made_at
        moved = last is None or restarted or last.progress != report.progress
        if moved and last is not None:
            self._proved_at = max(self._proved_at, made_at)
        if moved or not (has_work or report.num_running or report.num_waiting):
            self.stalled_seconds = 0.0
        else:
            self.stalled_seconds += min(max(elapsed, 0.0), MAX_GAP_SECONDS)
        return restarted

    def _start_over(self, now: float) -> None:
        self.generation += 1
        self.ejected_for = None
        self._num_ejections = 0
        self._failures.clear()
        self._is_restart = True
        self._proved_at = now

    def trouble(self, silence: float) -> OutReason | None:
        """What its reports, or that there are none, prove."""
        if silence > self._rules.lease_seconds:
            return "lease"
        p99 = 0.0 if self._report is None else self._report.p99_step_seconds
        return "wedged" if self.stalled_seconds >= self._rules.stall_limit(p99) else None

    def note(self, now: float, outcome: Outcome) -> OutReason | None:
        """Count an outcome; what all of them say now."""
        if outcome == "ok":
            self._proved_at = now
        self._failures.note(now, outcome)
        return self._failures.verdict()

    def eject(self, now: float, reason: OutReason, chance: float) -> None:
        """Out, until a probe after the back-off succeeds."""
        if self._returned_at is not None and now - self._returned_at > self._rules.longest_back_off:
            self._num_ejections = 0
        self._num_ejections += 1
        self._back_off_ends = now + self._rules.back_off(self._num_ejections, chance)
        self.ejected_for = reason
        self.generation += 1
        self._failures.clear()

    def probe_failed(self, now: float, chance: float) -> None:
        """Still out, for longer."""
        self._num_ejections += 1
        self._back_off_ends = now + self._rules.back_off(self._num_ejections, chance)

    def come_back(self, now: float) -> None:
        """Up again, slowly."""
        self.ejected_for = None
        self._returned_at = self._proved_at = now
        self.stalled_seconds = 0.0

    def wants_probe(self, now: float, silence: float) -> bool:
        """Whether a probe would tell something: that it is back, is not wedged, is alive."""
        state = "starting" if self._report is None else self._report.state
        if state != "ready" or silence > self._rules.lease_seconds:
            return False
        if self.ejected_for is not None:
            return now >= self._back_off_ends
        if self.stalled_seconds >= self._rules.suspect_seconds:
            return True
        return now - self._proved_at >= self._rules.idle_probe_seconds

    def out_reason(self) -> OutReason | None:
        """Why it gets nothing new; None: it is up."""
        if self.ejected_for is not None:
            return self.ejected_for
        state = "starting" if self._report is None else self._report.state
        return None if state == "ready" else state

    def warmth(self, now: float) -> float:
        """From ``first_warmth`` at a return to 1."""
        if self._returned_at is None:
            return 1.0
        done = (now - self._returned_at) / self._rules.warm_up_seconds
        first = self._rules.first_warmth
        return min(1.0, first + (1.0 - first) * max(done, 0.0))
