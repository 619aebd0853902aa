from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.exceptions import ResponseError
from redis_server import RedisServer, redis_server

from branchline.gateway.fleet.connection import Client, RedisDown, RedisLink
from branchline.gateway.fleet.redis_client import make_client
from branchline.gateway.fleet.redis_url import parse_redis_url
from branchline.gateway.fleet.script import Script

TIMEOUT = 0.1
# What a busy test machine may add to a bound: then calls may fail for a while before it opens.
SLACK = 0.9


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[RedisLink]:
    link = RedisLink.open(redis.url, timeout=TIMEOUT)
    yield link
    await link.close()


async def get(client: Client) -> bytes | None:
    value: bytes | None = await client.execute_command("GET", "a")
    return value


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        await asyncio.sleep(0.01)


async def timed_failure(link: RedisLink) -> float:
    began = time.monotonic()
    with pytest.raises(RedisDown):
        await link.run(get)
    return time.monotonic() - began


async def test_a_call_gives_what_redis_says(link: RedisLink, redis: RedisServer) -> None:
    with redis.client() as client:
        client.set("a", "1")
    assert await link.run(get) == b"1"


async def test_a_frozen_redis_costs_one_bound_and_then_nothing(
    link: RedisLink, redis: RedisServer
) -> None:
    await link.run(get)
    redis.stop()
    first = await asyncio.gather(*(timed_failure(link) for _ in range(100)))
    assert TIMEOUT - 0.02 < max(first) < TIMEOUT + SLACK
    async with asyncio.timeout(5):
        while link.is_up:
            await timed_failure(link)
    assert await timed_failure(link) < TIMEOUT / 2
    redis.cont()
    await until(lambda: link.is_up)
    assert await link.run(get) is None


async def test_a_dead_redis_comes_back_without_anyone_asking(
    link: RedisLink, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await link.run(get)
    redis.kill()
    await timed_failure(link)
    await until(lambda: "is down" in caplog.text)
    redis.start()
    await until(lambda: link.is_up)
    assert await link.run(get) is None
    assert len(caplog.messages) == 2
    assert "answers again" in caplog.messages[1]


async def test_redis_may_be_away_at_the_start(redis: RedisServer) -> None:
    redis.kill()
    link = RedisLink.open(redis.url)
    await timed_failure(link)
    redis.start()
    await until(lambda: link.is_up)
    await link.close()
    await timed_failure(link)


async def test_errors_of_the_call_are_the_callers(link: RedisLink) -> None:
    with pytest.raises(ResponseError, match="unknown command"):
        await link.run(lambda client: client.execute_command("NONSENSE"))
    with pytest.raises(ZeroDivisionError):
        await link.run(lambda client: 1 // 0)
    assert link.is_up


async def test_a_redis_that_may_not_write_is_down(link: RedisLink, redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(RedisDown) as raised:
        await link.run(lambda client: client.execute_command("SET", "a", "a secret"))
    assert "secret" not in str(raised.value)
    assert link.num_openings == 1


async def test_a_wrong_password_is_down_and_is_not_shown(redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("requirepass", "right")
    link = RedisLink.open(f"redis://:wrong@127.0.0.1:{redis.port}")
    with pytest.raises(RedisDown) as raised:
        await link.run(get)
    assert "wrong@" not in str(raised.value)
    await link.close()


async def test_a_cancelled_call_leaves_no_answer_for_the_next(
    link: RedisLink, redis: RedisServer
) -> None:
    with redis.client() as client:
        client.set("a", "1")
    for _ in range(50):
        call = asyncio.create_task(link.run(lambda client: client.execute_command("ECHO", "no")))
        for _ in range(8):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await link.run(get) == b"1"


async def test_a_script_is_sent_again_to_an_empty_redis(
    link: RedisLink, redis: RedisServer
) -> None:
    script = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")

    async def count(client: Client) -> int:
        return int(await script.run(client, ["n"], [2]))

    assert [await link.run(count), await link.run(count)] == [2, 4]
    with redis.client() as client:
        client.script_flush()
        assert await link.run(count) == 6
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 3
    assert link.num_openings == 0


async def test_a_socket_and_a_database(tmp_path: object) -> None:
    path = f"{tmp_path}/redis.sock"
    with redis_server("--unixsocket", path) as server:
        link = RedisLink.open(f"unix://{path}?db=3")
        await link.run(lambda client: client.execute_command("SET", "a", "1"))
        with server.client() as client:
            assert client.info("keyspace")["db3"]["keys"] == 1
        await link.close()


async def test_what_answers_only_pings_is_not_tried_all_the_time(
    link: RedisLink, redis: RedisServer
) -> None:
    with redis.client() as client:
        client.config_set("maxmemory", 1)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        with pytest.raises(RedisDown):
            await link.run(lambda client: client.execute_command("SET", "a", "1"))
        await asyncio.sleep(0.002)
    assert 1 < link.num_openings < 12


async def stand_still(link: RedisLink, num_times: int) -> None:
    """Calls whose answer is there long before this process looks for it."""
    await link.run(get)
    for _ in range(num_times):
        calling = asyncio.create_task(link.run(get))  # type: ignore[arg-type]
        for _ in range(6):
            await asyncio.sleep(0)
        time.sleep(3 * TIMEOUT)
        assert await calling is None
    assert link.num_openings == 0


async def test_a_busy_process_does_not_take_redis_for_dead(link: RedisLink) -> None:
    await stand_still(link, 4)


def test_nor_does_it_with_uvloop(redis: RedisServer) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def check() -> None:
        link = RedisLink.open(redis.url, timeout=TIMEOUT)
        await stand_still(link, 4)
        await link.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_calls_that_a_busy_loop_could_not_make_open_nothing_at_first(
    redis: RedisServer,
) -> None:
    clock = Clock()
    client, _ = make_client(parse_redis_url(redis.url))
    link = RedisLink(client, shown="test", timeout=0.01, clock=clock)

    async def stall(client: Client) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
            time.sleep(0.03)
        await asyncio.sleep(1)

    for seconds, is_up in ((0.0, True), (0.4, True), (0.2, False)):
        clock.now += seconds
        with pytest.raises(RedisDown):
            await link.run(stall)
        assert link.is_up is is_up
    await link.close()
