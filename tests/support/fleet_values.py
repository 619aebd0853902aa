"""Values that tests of the gateway's view and routing are made of."""

from __future__ import annotations

from typing import Any

from branchline.gateway.fleet.records import AdapterPlace, ReplicaReport
from branchline.gateway.types import FleetSnapshot, ReplicaView, RouteRequest, Target
from branchline.gateway.view.sightings import Heard, Sightings

BASE = Target(name="m", wire_name="m")
ADAPTER = Target(name="legal", wire_name="fleet/1", digest="d1", in_registry=True, label="legal")


def report(replica_id: str = "a", **fields: Any) -> ReplicaReport:
    """One of a ready, idle replica that computes 1,000 prompt tokens a second."""
    given: dict[str, Any] = {
        "replica_id": replica_id,
        "url": f"http://{replica_id}",
        "epoch": "e1",
        "beat": 1,
        "state": "ready",
        "fingerprint": "f",
        "models": ["m"],
        "max_model_len": 4096,
        "prefill_tokens_per_second": 1000.0,
    }
    return ReplicaReport(**{**given, **fields})


def view(replica_id: str = "a", tiers: dict[str, Any] | None = None, **fields: Any) -> ReplicaView:
    """A replica that is up; ``tiers`` are of adapters by name, other fields are the report's."""
    own = {name: fields.pop(name) for name in ("load", "warmth", "out_reason") if name in fields}
    places = {
        name: AdapterPlace(name=name, digest="d1", tier=tier)
        for name, tier in (tiers or {}).items()
    }
    return ReplicaView(report=report(replica_id, **fields), places=places, **own)


def fleet(*views: ReplicaView) -> FleetSnapshot:
    return FleetSnapshot(views)


def route(
    num_prompt_tokens: int = 100, matched: dict[str, int] | None = None, **fields: Any
) -> RouteRequest:
    return RouteRequest(
        target=fields.pop("target", BASE),
        num_prompt_tokens=num_prompt_tokens,
        num_matched_tokens=matched or {},
        **fields,
    )


def seen(*reports: ReplicaReport, age: float = 0.0, **fields: Any) -> Sightings:
    """A look that found these, all of one age."""
    return Sightings(replicas={one.replica_id: Heard(one, age) for one in reports}, **fields)


class FakeClock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
