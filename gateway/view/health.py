"""Who of the fleet may get requests; pure, told the time and what was seen."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from ..fleet.records import ReplicaReport
from ..types import Outcome
from .leases import Leases
from .replica_health import ReplicaHealth
from .rules import AGAINST, HealthRules, OutReason


@dataclass(frozen=True, slots=True)
class Change:
    """A replica went ``out`` for ``reason``, or came ``back`` from it."""

    kind: Literal["out", "back"]
    replica_id: str
    reason: OutReason


class Health:
    """All replicas' standing, and how many may be out for errors at once."""

    def __init__(self, rules: HealthRules | None = None, seed: int | None = None) -> None:
        self.rules = rules or HealthRules()
        self.leases = Leases()
        self._replicas: dict[str, ReplicaHealth] = {}
        self._random = random.Random(seed)

    def heard(
        self, now: float, report: ReplicaReport, made_at: float, has_work: bool
    ) -> Change | None:
        """Take in a report that is newer than the last; a change if the process is a new one."""
        replica_id = report.replica_id
        if replica_id not in self._replicas:
            self._replicas[replica_id] = ReplicaHealth(self.rules, now)
        if self._replicas[replica_id].heard(report, made_at, has_work):
            return Change("out", replica_id, "restarted")
        return None

    def review(self, now: float) -> list[Change]:
        """Eject whom silence or a standstill proves dead."""
        changes = []
        for replica_id, replica in self._replicas.items():
            reason = replica.trouble(self.leases.silence(replica_id))
            if reason is not None and replica.ejected_for not in ("lease", "wedged"):
                changes.append(self._eject(now, replica_id, reason))
        return changes

    def note(self, now: float, replica_id: str, generation: int, outcome: Outcome) -> Change | None:
        """Count how a request of that generation went."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.generation != generation or replica.ejected_for:
            return None
        reason = replica.note(now, outcome)
        if reason is None or not self._may_go(replica_id, reason):
            return None
        return self._eject(now, replica_id, reason)

    def probed(
        self, now: float, replica_id: str, generation: int, outcome: Outcome
    ) -> Change | None:
        """A probe ended: one that is out comes back or waits longer, any other counts as usual."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.generation != generation:
            return None
        reason = replica.ejected_for
        if reason is None:
            return self.note(now, replica_id, generation, outcome)
        if outcome == "ok":
            replica.come_back(now)
            return Change("back", replica_id, reason)
        if outcome in AGAINST or outcome == "overloaded":
            replica.probe_failed(now, self._random.random())
        return None

    def forget(self, replica_ids: Iterable[str]) -> None:
        """They are no members any more."""
        for replica_id in list(replica_ids):
            self._replicas.pop(replica_id, None)
            self.leases.forget([replica_id])

    def due_probes(self, now: float, under_way: Collection[str] = ()) -> list[str]:
        """Whom to probe now, without those whose probe is ``under_way``."""
        return [
            replica_id
            for replica_id, replica in self._replicas.items()
            if replica_id not in under_way
            and replica.wants_probe(now, self.leases.silence(replica_id))
        ]

    def generation(self, replica_id: str) -> int:
        """For outcomes of what is sent now."""
        replica = self._replicas.get(replica_id)
        return -1 if replica is None else replica.generation

    def out_reason(self, replica_id: str) -> OutReason | None:
        """Why it gets nothing new; None: it is up."""
        replica = self._replicas.get(replica_id)
        return "gone" if replica is None else replica.out_reason()

    def warmth(self, now: float, replica_id: str) -> float:
        """0 to 1, less after a return."""
        replica = self._replicas.get(replica_id)
        return 1.0 if replica is None else replica.warmth(now)

    def _may_go(self, replica_id: str, reason: OutReason) -> bool:
        """Whether one more may be out for how requests went: a share of all, never the last.

        If all seem to fail it is more likely us, or one bad request sent everywhere. One that has
        fallen silent beside being unreachable is out whatever the others do.
        """
        silence = self.leases.silence(replica_id)
        if reason == "unreachable" and silence > self.rules.quiet_seconds:
            return True
        standings = [replica.out_reason() for replica in self._replicas.values()]
        num_out = standings.count("failing") + standings.count("unreachable")
        allowed = int(self.rules.max_failing_share * len(standings))
        return num_out < allowed and standings.count(None) > 1

    def _eject(self, now: float, replica_id: str, reason: OutReason) -> Change:
        self._replicas[replica_id].eject(now, reason, self._random.random())
        return Change("out", replica_id, reason)
