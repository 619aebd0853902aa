"""What one decision costs the gateway's core."""

from __future__ import annotations

import time
from types import MappingProxyType

from branchline.gateway.fleet.records import AdapterPlace, ReplicaReport
from branchline.gateway.routing.router import POLICIES, Router, policy_named
from branchline.gateway.types import FleetSnapshot, ReplicaView, RouteRequest, Target

NUM_ROUNDS = 5


def decision_microseconds(num_replicas: int, num_decisions: int) -> dict[str, float]:
    """CPU time by policy, the best of some rounds: what else runs on the core is not the rule's."""
    snapshot = FleetSnapshot(tuple(_view(number) for number in range(num_replicas)))
    request = RouteRequest(
        target=Target(name="a", wire_name="fleet/a", digest="d", in_registry=True),
        num_prompt_tokens=3000,
        num_matched_tokens={f"r{number}": 512 for number in range(0, num_replicas, 3)},
        affinity=b"tenant",
    )
    return {
        name: min(_round(Router(policy_named(name), 1), request, snapshot, num_decisions))
        for name in POLICIES
    }


def _round(
    router: Router, request: RouteRequest, snapshot: FleetSnapshot, num_decisions: int
) -> list[float]:
    found = []
    for _ in range(NUM_ROUNDS):
        started = time.process_time()
        for _ in range(num_decisions):
            router.choose(request, snapshot)
        found.append((time.process_time() - started) / num_decisions * 1e6)
    return found


def _view(number: int) -> ReplicaView:
    report = ReplicaReport(
        replica_id=f"r{number}",
        url=f"http://r{number}",
        epoch="1",
        beat=1,
        state="ready",
        fingerprint="f",
        models=["m"],
        max_model_len=4096,
        num_running=number % 7,
        num_queued_prefill_tokens=100 * number,
        prefill_tokens_per_second=5000.0 + number,
    )
    place = AdapterPlace(name="fleet/a", digest="d", tier="host")
    return ReplicaView(report=report, places=MappingProxyType({"fleet/a": place}))
