"""From a replica's keys through a real Redis to a gateway's index, and past Redis when it must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import ClientSession, web
from key_house import NAMES, KeyReplica, number_key
from redis_groups import cluster_url, redis_cluster
from redis_server import RedisServer, redis_server

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.key_answer import CONTENT_TYPE, KeyAnswer, encode_answer
from branchline.gateway.fleet.records import KeySnapshot
from branchline.gateway.view import key_reader
from branchline.gateway.view.key_index import KeyIndex
from branchline.gateway.view.key_reader import HttpKeyFetch, KeyReader


class Gateway:
    """A reader with a clock of its own, and the replicas that it can ask."""

    def __init__(self, *replicas: KeyReplica) -> None:
        self.now = 0.0
        self.replicas = {f"http://{replica.replica_id}": replica for replica in replicas}
        self.index = KeyIndex()
        self.reader = KeyReader(self.index, NAMES, self.fetch, lambda: self.now)

    async def fetch(self, url: str, epoch: str | None, after: int) -> KeyAnswer:
        return await self.replicas[url].fetch(epoch, after)

    async def poll(self, link: RedisLink | None, seconds: float = 1.0) -> None:
        """One look, what it begins, and the time until the next."""
        await self.reader.poll([one.report() for one in self.replicas.values()], link)
        tasks = [source.fetch for source in self.reader._sources.values() if source.fetch]
        await asyncio.gather(*tasks)
        self.now += seconds

    def holds(self, replica_id: str) -> set[int]:
        return {number for number in range(3000) if self.has(replica_id, number)}

    def has(self, replica_id: str, number: int) -> bool:
        return replica_id in self.index.matched([number_key(number)])


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[RedisLink]:
    opened = RedisLink.open(redis.url, timeout=5.0)
    await opened.run(lambda client: client.flushall())
    yield opened
    await opened.close()


async def test_keys_come_and_go_through_redis(link: RedisLink) -> None:
    one, two = KeyReplica("one"), KeyReplica("two")
    publishers = [one.publisher(link), two.publisher(link)]
    gateway = Gateway(one, two)
    await gateway.poll(link)
    for number in range(40):
        one.hold(number)
        two.hold(number, 1000 + number)
        one.lose(number // 2)
        for publisher in publishers:
            await publisher.publish()
        await gateway.poll(link)
    assert gateway.holds("one") == set(range(20, 40))
    assert gateway.holds("two") == {*range(40), *range(1000, 1040)}
    assert (one.num_fetches, two.num_fetches) == (1, 1), "only the first ones"


async def test_a_gateway_that_comes_late_knows_all(link: RedisLink) -> None:
    one = KeyReplica("one")
    publisher = one.publisher(link)
    for number in range(700):
        one.hold(number)
        await publisher.publish()
    gateway = Gateway(one)
    await gateway.poll(link)
    one.hold(2000)
    await publisher.publish()
    for _ in range(8):  # behind what the stream still has of old
        await gateway.poll(link, 0.1)
    assert gateway.holds("one") == {*range(700), 2000}
    assert one.num_fetches == 1


async def test_a_trimmed_stream_is_a_gap(link: RedisLink) -> None:
    one = KeyReplica("one")
    publisher, gateway = one.publisher(link), Gateway(one)
    one.hold(1)
    await publisher.publish()
    await gateway.poll(link)
    for number in range(2, 10):
        one.hold(number)
        await publisher.publish()
    await link.run(lambda client: client.xtrim(NAMES.keys("one"), maxlen=2, approximate=False))
    await gateway.poll(link)
    assert one.num_fetches == 2
    one.hold(10)
    await publisher.publish()
    await gateway.poll(link)
    assert gateway.holds("one") == set(range(1, 11))
    assert one.num_fetches == 2


async def test_redis_comes_back_empty(redis: RedisServer, link: RedisLink) -> None:
    one = KeyReplica("one")
    publisher, gateway = one.publisher(link), Gateway(one)
    one.hold(1)
    await publisher.publish()
    await gateway.poll(link)
    redis.kill()
    one.hold(2)
    one.lose(1)
    await publisher.publish()
    await gateway.poll(link)
    assert gateway.holds("one") == {2}, "from the replica itself"
    redis.start()
    await until_up(link)
    one.hold(3)
    await publisher.publish()
    await gateway.poll(link)
    one.hold(4)
    await publisher.publish()
    late = Gateway(one)
    for each in (gateway, late):
        for _ in range(3):
            await each.poll(link)
        assert each.holds("one") == {2, 3, 4}


async def until_up(link: RedisLink) -> None:
    async with asyncio.timeout(10):
        while not link.is_up:
            await asyncio.sleep(0.02)


async def test_what_never_comes_through_redis_is_asked_for(link: RedisLink) -> None:
    """As when an entry is lost, or a new Redis counts its time from before."""
    one = KeyReplica("one")
    publisher, gateway = one.publisher(link), Gateway(one)
    one.hold(1)
    await publisher.publish()
    await gateway.poll(link)
    one.hold(2)
    await gateway.poll(link, key_reader.GRACE_SECONDS / 2)
    assert one.num_fetches == 1, "it may still be on its way"
    await gateway.poll(link)
    await gateway.poll(link)
    assert gateway.holds("one") == {1, 2}
    assert one.num_fetches == 2


async def test_a_replica_that_starts_again_begins_with_nothing(link: RedisLink) -> None:
    one = KeyReplica("one")
    publisher, gateway = one.publisher(link), Gateway(one)
    one.hold(*range(9))
    await publisher.publish()
    await gateway.poll(link)
    one.restart("f")
    publisher = one.publisher(link)
    await gateway.poll(link)
    assert gateway.holds("one") == set()
    one.hold(5)
    await publisher.publish()
    await gateway.poll(link)
    assert gateway.holds("one") == {5}
    entries = await link.run(lambda client: client.xlen(NAMES.keys("one")))
    assert entries == 1, "the old stream is gone"


async def test_a_replica_that_leaves_is_forgotten_also_while_it_is_asked():
    one, two = KeyReplica("one"), KeyReplica("two")
    gateway = Gateway(one, two)
    two.hold(1)
    await gateway.poll(None)
    assert gateway.holds("two") == {1}
    two.hold(2)
    reports = [one.report(), two.report()]
    await gateway.reader.poll(reports, None)
    await gateway.reader.poll(reports[:1], None)
    await asyncio.sleep(0)
    assert gateway.holds("two") == set()
    assert gateway.index.position("two") is None
    await gateway.reader.close()


async def test_without_redis_replicas_are_asked_when_they_have_news():
    one = KeyReplica("one")
    gateway = Gateway(one)
    for number in range(5):
        one.hold(number)
        for _ in range(3):
            await gateway.poll(None)
    assert gateway.holds("one") == set(range(5))
    assert one.num_fetches == 5


async def test_one_that_does_not_answer_is_asked_less_and_less_often():
    one = KeyReplica("one", is_down=True)
    gateway = Gateway(one)
    for _ in range(200):
        await gateway.poll(None, 0.1)
    assert 4 <= one.num_fetches <= 8
    one.is_down = False
    one.hold(1)
    await gateway.poll(None, key_reader.LAST_RETRY_SECONDS)
    await gateway.poll(None)
    assert gateway.holds("one") == {1}


async def test_junk_in_a_stream_is_passed_over(link: RedisLink) -> None:
    one = KeyReplica("one")
    publisher, gateway = one.publisher(link), Gateway(one)
    one.hold(1)
    await publisher.publish()
    await gateway.poll(link)
    for field, value in (("e", b"\xff"), ("x", b""), ("e", b"")):
        await link.run(lambda client, f=field, v=value: client.xadd(NAMES.keys("one"), {f: v}))
    one.hold(2)
    await publisher.publish()
    await gateway.poll(link)
    assert gateway.holds("one") == {1, 2}
    assert one.num_fetches == 1


async def test_keys_come_through_a_cluster():
    with redis_cluster(3) as nodes:
        link = RedisLink.open(cluster_url(nodes), timeout=5.0)
        one, two = KeyReplica("one"), KeyReplica("two")
        publishers = [one.publisher(link), two.publisher(link)]
        gateway = Gateway(one, two)
        for number in range(5):
            one.hold(number)
            two.hold(number + 10)
            for publisher in publishers:
                await publisher.publish()
            await gateway.poll(link)
        assert gateway.holds("one") == set(range(5))
        assert gateway.holds("two") == set(range(10, 15))
        assert (one.num_fetches, two.num_fetches) == (1, 1)
        await link.close()


async def test_replicas_are_asked_over_http_with_the_secret():
    asked = []

    async def keys(request: web.Request) -> web.Response:
        asked.append((request.headers.get("x-branchline-fleet-secret"), dict(request.query)))
        if len(asked) == 3:
            return web.Response(status=404)
        if len(asked) == 4:
            return web.Response(body=b"no msgpack")
        snapshot = KeySnapshot(epoch="e", sequence=3, keys=number_key(1))
        body = encode_answer(KeyAnswer(snapshot=snapshot))
        return web.Response(body=body, content_type=CONTENT_TYPE)

    app = web.Application()
    app.router.add_get("/fleet/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with ClientSession() as session:
        fetch = HttpKeyFetch(session, "s3cret")
        answer = await fetch(url, None, 0)
        assert answer.snapshot == KeySnapshot(epoch="e", sequence=3, keys=number_key(1))
        await fetch(url, "e", 3)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"404|msgpack|truncated|Expected"):
                await fetch(url, "e", 3)
    await runner.cleanup()
    assert asked[:2] == [("s3cret", {}), ("s3cret", {"epoch": "e", "after": "3"})]


async def test_what_is_expected_of_a_replica_that_is_gone_is_forgotten(link: RedisLink) -> None:
    """A request that was routed to it just before says so after; its bit must not stay."""
    one, two = KeyReplica("one"), KeyReplica("two")
    gateway = Gateway(one, two)
    await gateway.poll(link)
    gone = gateway.replicas.pop("http://two")
    await gateway.poll(link)
    gateway.index.expect("two", [number_key(1)])
    assert gateway.has("two", 1)
    await gateway.poll(link)
    assert gateway.index.replica_ids <= {"one"}
    assert not gateway.has("two", 1)
    gateway.replicas["http://two"] = gone
    await gateway.poll(link)
    gateway.index.expect("two", [number_key(2)])
    await gateway.poll(link)
    assert gateway.has("two", 2)
