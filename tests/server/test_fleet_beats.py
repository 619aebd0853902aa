"""Beats of a replica in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from redis_server import RedisServer, redis_server

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.records import AdapterPlace, AdapterPlaces, ReplicaReport
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.server.fleet import member as member_module
from branchline.server.fleet.member import FleetMember, Membership

NAMES = RedisNames("default")


@dataclass
class Places:
    current: AdapterPlaces = AdapterPlaces(epoch="e", version=1)  # noqa: RUF009


@dataclass
class Reporter:
    is_draining: bool = False
    is_listening: bool = False


@dataclass
class Replica:
    """As much of a replica as beats need."""

    replica_id: str = "a:1"
    epoch: str = "e"
    beat: int = 0
    places: Places = field(default_factory=Places)
    reporter: Reporter = field(default_factory=Reporter)

    def report(self) -> ReplicaReport:
        self.beat += 1
        return ReplicaReport(
            replica_id=self.replica_id,
            url="http://a:1",
            epoch=self.epoch,
            beat=self.beat,
            state="draining" if self.reporter.is_draining else "ready",
            fingerprint="f",
            models=["base"],
            max_model_len=100,
        )


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[RedisLink]:
    link = RedisLink.open(redis.url, timeout=0.5)
    yield link
    await link.close()


def make(link: RedisLink, **fields: Any) -> tuple[Replica, FleetMember]:
    replica = Replica(**fields)
    return replica, FleetMember(replica, link, NAMES)  # type: ignore[arg-type]


def reports(redis: RedisServer) -> dict[str, ReplicaReport]:
    with redis.client() as client:
        found = client.hgetall(NAMES.replicas)
    decoded = [msgspec.json.decode(raw, type=ReplicaReport) for raw in found.values()]
    return {report.replica_id: report for report in decoded}


def places(redis: RedisServer, replica_id: str = "a:1") -> AdapterPlaces | None:
    with redis.client() as client:
        raw = client.get(NAMES.adapters(replica_id))
    return None if raw is None else msgspec.json.decode(raw, type=AdapterPlaces)


async def test_a_beat_tells_how_it_stands_and_when(link: RedisLink, redis: RedisServer) -> None:
    _, member = make(link)
    await member.beat()
    await member.beat()
    assert reports(redis)["a:1"].beat == 2
    with redis.client() as client:
        seconds, _ = client.time()
        assert abs(client.zscore(NAMES.beats, "a:1") / 1e3 - seconds) < 5
        assert 0 < client.ttl(NAMES.adapters("a:1")) <= 60


async def test_what_it_serves_is_told_when_it_changes(link: RedisLink, redis: RedisServer) -> None:
    replica, member = make(link)
    await member.beat()
    assert places(redis) == replica.places.current
    legal = AdapterPlace(name="legal", digest="d", tier="host")
    replica.places.current = AdapterPlaces(epoch="e", version=2, places=[legal])
    await member.beat()
    assert places(redis) == replica.places.current
    with redis.client() as client:
        client.set(NAMES.adapters("a:1"), "mine", keepttl=True)
        await member.beat()  # the same version is not sent again
        assert client.get(NAMES.adapters("a:1")) == b"mine"


async def test_an_empty_redis_is_told_all_again(link: RedisLink, redis: RedisServer) -> None:
    replica, member = make(link)
    await member.beat()
    with redis.client() as client:
        client.flushall()
    await member.beat()
    assert set(reports(redis)) == {"a:1"}
    assert places(redis) == replica.places.current


async def test_who_said_nothing_for_a_minute_is_forgotten(
    link: RedisLink, redis: RedisServer
) -> None:
    for name in ("a:1", "b:1", "c:1"):
        await make(link, replica_id=name)[1].beat()
    with redis.client() as client:
        now = client.zscore(NAMES.beats, "a:1")
        client.zadd(NAMES.beats, {"b:1": now - 61_000, "c:1": now - 55_000})
    await make(link)[1].beat()
    assert set(reports(redis)) == {"a:1", "c:1"}
    with redis.client() as client:
        assert client.zcard(NAMES.beats) == 2


async def test_who_leaves_is_gone(link: RedisLink, redis: RedisServer) -> None:
    _, member = make(link)
    await make(link, replica_id="b:1")[1].beat()
    await member.beat()
    await member.leave()
    assert set(reports(redis)) == {"b:1"}
    assert places(redis) is None


async def test_a_redis_that_is_away_stops_nobody(link: RedisLink, redis: RedisServer) -> None:
    replica, member = make(link)
    redis.kill()
    await member.beat()
    await member.leave()
    redis.start()
    beating = asyncio.create_task(member.run())
    async with asyncio.timeout(10):
        while not reports(redis):
            await asyncio.sleep(0.01)
    beating.cancel()
    assert replica.beat >= 2


async def test_what_redis_refuses_is_said_once(
    link: RedisLink,
    redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(member_module, "BEAT_SECONDS", 0.01)
    replica, member = make(link)
    with redis.client() as client:
        client.set(NAMES.replicas, "no hash")
        beating = asyncio.create_task(member.run())
        async with asyncio.timeout(10):
            while replica.beat < 5:
                await asyncio.sleep(0.01)
        client.delete(NAMES.replicas)
        async with asyncio.timeout(10):
            while not reports(redis):
                await asyncio.sleep(0.01)
    beating.cancel()
    assert caplog.text.count("refuses this replica") == 1


async def test_the_end_is_announced_before_it_comes(
    link: RedisLink, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "NOTICE_SECONDS", 0.0)
    replica, member = make(link)
    membership = Membership(replica, member)  # type: ignore[arg-type]
    membership.listening()
    assert replica.reporter.is_listening
    await membership.announce_end()
    assert reports(redis)["a:1"].state == "draining"
    await Membership(None, None).announce_end()


async def test_a_name_that_is_taken_is_said_once(
    link: RedisLink, caplog: pytest.LogCaptureFixture
) -> None:
    (_, one), (_, other) = make(link, epoch="1"), make(link, epoch="2")
    for _ in range(8):
        await one.beat()
        await other.beat()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("--replica-id 'a:1'" in text for text in said)


async def test_a_predecessor_that_died_just_now_is_no_namesake(
    link: RedisLink, caplog: pytest.LogCaptureFixture
) -> None:
    (_, before), (_, after) = make(link, epoch="1"), make(link, epoch="2")
    await before.beat()
    for _ in range(8):
        await after.beat()
    assert not caplog.records
