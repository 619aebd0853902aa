"""Members and a clock, to try when a replica is out."""

from __future__ import annotations

from typing import Any

from fleet_values import FakeClock, report, seen

from branchline.gateway.types import Outcome
from branchline.gateway.view.flight import Flight
from branchline.gateway.view.health import Change, Health
from branchline.gateway.view.lag import LagMeter
from branchline.gateway.view.members import Members
from branchline.gateway.view.rules import HealthRules


class StandingHouse:
    """Members and a clock; every ``beat`` is a look that finds fresh reports."""

    def __init__(self, *names: str, **rules: Any) -> None:
        self.clock = FakeClock()
        self.lag = LagMeter(self.clock)
        health = Health(HealthRules(**rules), seed=1)
        self.members = Members("g1", health, self.clock, self.lag)
        self.changes: list[Change] = []
        self.members.subscribe(self.changes.append)
        self.fields: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.number = 0
        self.beat()

    def beat(self, seconds: float = 0.0, step: float = 0.25) -> None:
        """Looks for so long, at least one."""
        until = self.clock.now + seconds
        while True:
            self.number += 1
            self.members.take(
                seen(*(report(one, beat=self.number, **had) for one, had in self.fields.items()))
            )
            if self.clock.now >= until:
                return
            self.clock.pass_time(step)

    def out(self, name: str = "a") -> str | None:
        views = {view.replica_id: view for view in self.members.snapshot().replicas}
        return views[name].out_reason

    def warmth(self, name: str = "a") -> float:
        views = {view.replica_id: view for view in self.members.snapshot().replicas}
        return views[name].warmth

    def end(self, *outcomes: Outcome, name: str = "a") -> None:
        for outcome in outcomes:
            self.members.begin(name, 10).end(outcome)

    def due(self) -> list[str]:
        return [one.replica_id for one, _ in self.members.due_probes(())]

    def probe(self, outcome: Outcome = "ok", name: str = "a") -> None:
        self.members.probed(name, self.members.health.generation(name), outcome)


def lost(flight: Flight) -> str:
    return flight.lost_reason if flight.lost.is_set() else ""
