"""Where versions belong: little moves, copies follow demand, the dead are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fake_replicas import report_of
from gateway_adapters import AdapterGateway, adapter_gateway, gateway_house
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.adapters.placement import (
    SHRINK_SECONDS,
    Copies,
    Membership,
    Ranking,
    next_copies,
    plan,
    ranked,
)
from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.records import GatewayReport

REPLICAS = st.sets(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=12)
VERSIONS = st.lists(st.text("0123456789", min_size=1, max_size=6), max_size=20, unique=True)


@given(replicas=REPLICAS, versions=VERSIONS, copies=st.integers(1, 5))
def test_one_that_goes_moves_only_what_it_held(
    replicas: set[str], versions: list[str], copies: int
) -> None:
    gone = min(replicas)
    for version in versions:
        before = ranked(version, replicas)[:copies]
        after = ranked(version, replicas - {gone})[:copies]
        if gone in before:
            assert [one for one in before if one != gone] == after[: len(before) - 1]
        else:
            assert before == after


@given(replicas=REPLICAS, versions=VERSIONS, copies=st.integers(1, 5))
def test_every_version_has_its_copies_and_no_more(
    replicas: set[str], versions: list[str], copies: int
) -> None:
    holders = {version: set(sorted(replicas)[:2]) for version in versions}
    for placement in plan(dict.fromkeys(versions, copies), sorted(replicas), holders, Ranking()):
        assert len(placement.homes) == min(copies, len(replicas))
        held = holders[placement.version_id]
        assert set(placement.homes) == (held | set(placement.missing)) - set(placement.surplus)
        assert not held.intersection(placement.missing)


def test_versions_spread_evenly() -> None:
    replicas = [f"r{number}" for number in range(5)]
    homes = [home for version in range(2000) for home in ranked(str(version), replicas)[:2]]
    counts = [homes.count(replica) for replica in replicas]
    assert max(counts) < 1.15 * min(counts)


def test_copies_grow_at_once_and_shrink_slowly() -> None:
    copies = next_copies(None, 0, 100, 8, now=0)
    assert copies == Copies(2, 0)
    copies = next_copies(copies, 240, 100, 8, now=1)
    assert copies == Copies(5, 1)
    assert next_copies(copies, 0, 100, 8, now=SHRINK_SECONDS) == copies
    copies = next_copies(copies, 0, 100, 8, now=1 + SHRINK_SECONDS)
    assert copies == Copies(4, 1 + SHRINK_SECONDS)
    assert next_copies(copies, 1e9, 100, 8, now=500).count == 8
    assert next_copies(copies, 0, 100, 3, now=500).count == 3
    assert next_copies(None, 1e9, 0, 8, now=0).count == 2, "what a replica can do is not known"
    assert next_copies(None, 0, 100, 1, now=0).count == 1


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 6)), max_size=40))
def test_demand_around_a_border_does_not_make_copies_come_and_go(
    steps: list[tuple[float, int]],
) -> None:
    copies, now = None, 0.0
    for demand, num_replicas in steps:
        now += 1
        new = next_copies(copies, demand, 100, num_replicas, now)
        assert min(2, num_replicas) <= new.count <= max(2, num_replicas)
        if copies is not None and new.count < copies.count:
            assert new.count == num_replicas or now - copies.since >= SHRINK_SECONDS
        copies = new


def test_a_short_absence_moves_nothing() -> None:
    members = Membership(grace=10)
    assert members.update(["a", "b"], [], 0) == ["a", "b"]
    assert members.update(["a"], [], 10) == ["a", "b"]
    assert members.update(["a"], [], 10.5) == ["a"]
    assert members.update(["a", "b"], [], 11) == ["a", "b"]
    assert members.update(["a"], ["b"], 12) == ["a"]


@pytest.fixture
async def gateway() -> AsyncIterator[AdapterGateway]:
    async with gateway_house("a", "b", "c") as gateway:
        yield gateway


def _homes(gateway: AdapterGateway, data: bytes) -> set[str]:
    version_id = report_of(data).version_id
    return set(next(p.homes for p in gateway.placer.placements() if p.version_id == version_id))


async def test_a_replica_that_dies_is_replaced_after_a_while(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    await gateway.tick()
    dead, alive = sorted(_homes(gateway, b"one"))
    gateway.fleet[dead].is_up = False
    gateway.fleet[dead].fails.add("down")
    spare = ({"a", "b", "c"} - {dead, alive}).pop()
    gateway.fleet[spare].versions.clear()
    await gateway.tick(9)
    assert gateway.fleet.holding(b"one") == {dead, alive}
    await gateway.tick(2)
    assert gateway.fleet.holding(b"one") == {dead, alive, spare}
    gateway.fleet[dead].is_up = True
    gateway.fleet[dead].fails.clear()
    await gateway.tick(1)
    await gateway.tick(121)
    assert gateway.fleet.holding(b"one") == {dead, alive}


async def test_one_that_joins_takes_its_part_from_peers(gateway: AdapterGateway) -> None:
    contents = [f"adapter {number}".encode() for number in range(12)]
    for number, data in enumerate(contents):
        await gateway.upload(f"name-{number}", data)
    await gateway.tick()
    before = {data: _homes(gateway, data) for data in contents}
    joined = await gateway.fleet.join("d")
    await gateway.tick(1)
    for data in contents:
        assert _homes(gateway, data) <= gateway.fleet.holding(data)
        assert len(_homes(gateway, data) - before[data]) <= 1
    assert 0 < len(joined.versions) < 12
    await gateway.tick(1)
    await gateway.tick(121)
    assert all(gateway.fleet.holding(data) == _homes(gateway, data) for data in contents)


async def test_a_leaving_replica_is_replaced_at_once(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    await gateway.tick()
    leaving = min(_homes(gateway, b"one"))
    gateway.fleet[leaving].state = "draining"
    gateway.fleet[leaving].is_up = False
    await gateway.tick(1)
    assert gateway.fleet.holding(b"one") == {"a", "b", "c"}


async def test_copies_grow_with_demand_that_all_gateways_see(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    for replica in gateway.fleet.replicas:
        replica.speed = 100.0
    await gateway.tick()
    target = gateway.target("legal")
    for _ in range(20):
        gateway.directory.note_demand(target, 100)
    version_id = report_of(b"one").version_id
    assert 40 < gateway.directory.demand()[version_id] < 50
    await gateway.tick()
    assert len(_homes(gateway, b"one")) == 2
    other = GatewayReport(gateway_id="g2", url="", beat=1, adapter_demand={version_id: 100.0})
    gateway.gateways["g2"] = other
    assert len(_homes(gateway, b"one")) == 3
    await gateway.tick()
    await gateway.tick(16)
    assert gateway.fleet.holding(b"one") == {"a", "b", "c"}


async def test_pruned_versions_leave_after_a_minute(gateway: AdapterGateway) -> None:
    for number in range(6):
        await gateway.upload("legal", f"v{number}".encode())
        await gateway.tick()
    assert gateway.fleet.holding(b"v0")
    await gateway.tick(61)
    assert not gateway.fleet.holding(b"v0")
    await gateway.tick(1000)
    assert all(gateway.fleet.holding(f"v{number}".encode()) for number in range(1, 6))


async def test_an_empty_registry_removes_nothing(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    async with adapter_gateway(gateway.fleet, gateway_id="fresh") as fresh:
        for _ in range(5):
            await fresh.tick(4000)
    assert gateway.fleet.holding(b"one")


async def test_failures_are_tried_again_less_and_less_often(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    await gateway.tick()
    home = min(_homes(gateway, b"one"))
    gateway.fleet[home].versions.clear()
    gateway.fleet[home].fails.add("put")
    gateway.fleet[home].calls.clear()
    for _ in range(60):
        await gateway.tick(1)
    assert 3 <= len(gateway.fleet[home].calls) <= 7
    gateway.fleet[home].fails.clear()
    await gateway.tick(61)
    assert home in gateway.fleet.holding(b"one")


async def test_of_several_gateways_one_acts_and_the_others_follow_when_it_is_dead(
    gateway: AdapterGateway,
) -> None:
    await gateway.upload("legal", b"one")
    await gateway.tick()
    home = min(_homes(gateway, b"one"))
    for other in range(8):
        report = GatewayReport(gateway_id=f"dead{other}", url="", beat=1)
        gateway.gateways[report.gateway_id] = report
    gateway.fleet[home].versions.clear()
    await gateway.tick(1)
    async with adapter_gateway(gateway.fleet, gateway.store.redis, "g2") as second:
        await second.store.refresh()
        second.gateways.update(gateway.gateways)
        await second.tick()
    was_first = home in gateway.fleet.holding(b"one")
    await gateway.tick(16)
    assert home in gateway.fleet.holding(b"one")
    assert not was_first, "one of ten had the turn, most likely a dead one"


async def test_a_cold_request_brings_its_version_once(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    target = gateway.target("legal")
    cold = next(r for r in gateway.fleet.snapshot().replicas if target.wire_name not in r.places)
    replica = gateway.fleet[cold.replica_id]
    replica.go.clear()
    waiting = [asyncio.create_task(gateway.directory.ensure(target, cold)) for _ in range(20)]
    waiting[0].cancel()
    await asyncio.sleep(0.05)
    replica.go.set()
    await asyncio.gather(*waiting[1:])
    assert len([what for what, _ in replica.calls if what == "put"]) == 1
    await gateway.directory.ensure(target, cold)
    assert len([what for what, _ in replica.calls if what == "put"]) == 1
    await gateway.directory.ensure(target, cold, anew=True)
    assert len([what for what, _ in replica.calls if what == "put"]) == 2


async def test_an_old_version_can_be_brought_while_it_is_kept(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    target = gateway.target("legal")
    await gateway.upload("legal", b"two")
    for replica in gateway.fleet.snapshot().replicas:
        await gateway.directory.ensure(target, replica)
    assert len(gateway.fleet.holding(b"one")) == 3
    await gateway.tick()
    await gateway.client.delete("/admin/adapters/legal", params={"wait": 1})
    gateway.clock.now += 10
    with pytest.raises(GatewayError) as caught:
        await gateway.directory.ensure(target, gateway.fleet.snapshot().replicas[0])
    assert caught.value.status == 503


@given(st.lists(st.tuples(st.sampled_from("vwxyz"), REPLICAS), max_size=30))
def test_what_is_remembered_is_what_would_be_found(steps: list[tuple[str, set[str]]]) -> None:
    ranking = Ranking()
    for version, replicas in steps:
        assert ranking.of(version, sorted(replicas)) == ranked(version, replicas)
        ranking.keep({"v", "w"})
