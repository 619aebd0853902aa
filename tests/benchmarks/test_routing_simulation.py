"""The routing benchmark: its caches and replicas by example, conservation, and a tiny run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fleet_values import fleet, route, view

from branchline.benchmarks import routing
from branchline.benchmarks.routing_sim import subjects
from branchline.benchmarks.routing_sim.caches import AdapterCache, BlockCache
from branchline.benchmarks.routing_sim.figures import figures_of
from branchline.benchmarks.routing_sim.machine import Machine
from branchline.benchmarks.routing_sim.replica import SimReplica
from branchline.benchmarks.routing_sim.rivals import LlmdScores, SglangCacheAware
from branchline.benchmarks.routing_sim.simulation import Simulation
from branchline.benchmarks.routing_sim.traffic import (
    SimRequest,
    Traffic,
    infinite_hit_rate,
    read_requests,
)
from branchline.gateway.routing.choice import Policy
from branchline.gateway.routing.router import Router
from branchline.gateway.types import ReplicaView

KEYS = [number.to_bytes(16) for number in range(20)]
SMALL = Traffic(num_requests=200, speed=2.0, num_tenants=20)


def test_the_trace_is_whole_and_small() -> None:
    requests = read_requests(Traffic())
    assert len(requests) == 12_031
    times = [one.at for one in requests]
    assert times == sorted(times)
    assert requests == read_requests(Traffic())
    assert infinite_hit_rate(requests) == pytest.approx(0.373, abs=0.001)


def test_a_conversation_stays_with_its_tenant_and_tenants_share_nothing() -> None:
    requests = read_requests(replace(SMALL, num_requests=2000))
    owners: dict[bytes, int] = {}
    for one in requests:
        assert len(one.keys) == (one.num_prompt_tokens - 1) // 512
        assert all(owners.setdefault(key, one.tenant) == one.tenant for key in one.keys)
    tenants = [one.tenant for one in requests]
    assert tenants.count(0) > 2 * tenants.count(5) > 0


def test_blocks_are_found_evicted_and_told() -> None:
    cache = BlockCache(4)
    assert cache.take([], 3)
    for key in KEYS[:2]:
        cache.commit(key)
    cache.release(KEYS[:2], 1)
    assert (cache.match(KEYS), cache.num_free, cache.num_idle) == (2, 2, 2)
    assert list(cache.stored) == KEYS[:2]
    # A tail goes before its head, and what is in use stays.
    assert cache.take([], 3)
    assert cache.match(KEYS) == 1
    assert cache.take(KEYS[:1], 0)
    assert not cache.take([], 1)
    assert (list(cache.stored), list(cache.removed)) == (KEYS[:1], [])


def test_adapters_go_from_the_device_to_the_host_and_then_away() -> None:
    cache = AdapterCache(1, 1)
    assert [cache.use(name) for name in "aba"] == ["disk", "disk", "host"]
    assert cache.use("c") == "disk"
    assert cache.tiers() == {"a": "host", "b": "disk", "c": "device"}


def request(number: int, keys: Sequence[bytes], num_prompt: int, num_output: int) -> SimRequest:
    return SimRequest(
        number=number,
        at=0.0,
        tenant=0,
        keys=tuple(keys),
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
    )


def drain(replica: SimReplica, now: float) -> float:
    """Step until nothing is left; when that was."""
    while True:
        ends_at = replica.next_step(now)
        if ends_at is None:
            wakes_at = replica.wakes_at()
            if wakes_at is None:
                return now
            now = wakes_at
            continue
        now = ends_at
        replica.end_step()


def test_a_replica_computes_what_it_does_not_hold_at_its_rate() -> None:
    machine = Machine(cold_seconds=0.5)
    replica = SimReplica("r", machine)
    first = replica.arrive(0.0, request(1, KEYS[:8], 4097, 1))
    assert replica.report().num_queued_prefill_tokens == 4097
    drain(replica, 0.0)
    assert first.tier == "disk"
    assert first.first_token_at == pytest.approx(0.5 + 4097 / machine.prefill_rate, rel=0.05)
    second = replica.arrive(10.0, request(2, KEYS[:9], 4609, 1))
    drain(replica, 10.0)
    assert (second.num_cached, second.tier) == (8 * 512, "device")
    assert second.first_token_at - 10.0 < 0.1
    report = replica.report()
    assert (report.num_queued_prefill_tokens, report.num_running, report.num_waiting) == (0, 0, 0)
    assert replica.num_computed_tokens == 4097 + 513


def test_decodes_take_a_step_a_token_and_give_all_blocks_back() -> None:
    replica = SimReplica("r", Machine(num_blocks=40))
    for number in range(8):
        replica.arrive(0.0, request(number, KEYS[:3], 1700, 100))
    before = replica.report().progress
    drain(replica, 0.0)
    assert len(replica.finished) == 8
    assert 100 <= replica.report().progress - before <= 110
    report = replica.report()
    assert report.num_free_blocks == 40
    events = replica.key_events()
    assert events is not None
    assert events.stored == b"".join(KEYS[:3])


@pytest.mark.parametrize("name", subjects.setups(Machine()))
def test_every_request_is_served_once_under_every_policy(name: str) -> None:
    requests = read_requests(SMALL)
    setup = subjects.setups(Machine(num_blocks=400))[name]
    run = Simulation(setup, requests).run()
    assert sorted(one.request.number for one in run.served) == list(range(200))
    total = sum(one.num_prompt_tokens for one in requests)
    cached = sum(one.num_cached for one in run.served)
    assert sum(run.num_computed_tokens) == total - cached
    assert all(one.first_token_at > one.request.at for one in run.served)
    figures = figures_of(run)
    assert 0 <= figures.hit_rate <= infinite_hit_rate(requests)
    assert figures.p50_ttft <= figures.p99_ttft


def test_equal_seeds_simulate_equally() -> None:
    setup, requests = subjects.setups(Machine())[subjects.OURS], read_requests(SMALL)
    one, other = (figures_of(Simulation(setup, requests).run()) for _ in range(2))
    assert one == other


def pick(policy: Policy, views: Sequence[ReplicaView], matched: dict[str, int]) -> str:
    decision = Router(policy, seed=1).choose(route(1000, matched), fleet(*views))
    assert decision is not None
    return decision.replica_id


def test_sglangs_rule() -> None:
    policy = SglangCacheAware()
    idle = [view("a"), view("b")]
    assert pick(policy, idle, {"b": 400}) == "b"
    # Too little in common: the one that was sent least so far.
    assert pick(policy, idle, {"b": 300}) == "a"
    apart = [view("a", num_running=10), view("b", num_running=75)]
    assert pick(policy, apart, {"b": 900}) == "a"
    assert pick(policy, [view("a", num_running=200), view("b", num_running=265)], {"b": 900}) == "b"


def test_llmds_scores() -> None:
    policy = LlmdScores()
    full, empty = {"num_blocks": 10, "num_free_blocks": 0}, {"num_blocks": 10, "num_free_blocks": 9}
    assert pick(policy, [view("a", **full), view("b", **full)], {"b": 10}) == "b"
    # 3 for the whole prefix against 2 for the shorter queue and 1.8 for free memory.
    busy = view("b", num_waiting=5, **full)
    assert pick(policy, [view("a", **empty), busy], {"b": 1000}) == "a"
    assert pick(policy, [view("a", **full), busy], {"b": 1000}) == "b"


def test_a_tiny_run_says_what_it_is_and_which_goals_it_meets(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    done = CliRunner().invoke(routing.main, ["--requests", "200", "--json", str(path)])
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    assert found["kind"] == "simulation"
    assert len(found["cases"]) == len(routing.CASES)
    for case in found["cases"]:
        assert set(case["rows"]) == set(subjects.setups(Machine()))
        rows = case["rows"]
        assert rows["cost"]["mean_ttft"] < rows["round-robin"]["mean_ttft"]
        assert rows["cost"]["hit_rate"] > rows["round-robin"]["hit_rate"]
    fits = next(goal for goal in found["goals"] if "infinite" in goal["what"])
    assert fits["value"] > 0.9
