"""Redis frozen, killed, or back and empty: nobody's request fails, and what was used counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from redis_server import RedisServer, redis_server

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.limits.ledger import Ledger
from branchline.gateway.limits.limiter import Admission, Limiter
from branchline.gateway.limits.limits import Limits
from branchline.gateway.types import Caller, Estimate, Usage

ACME = Caller(tenant="acme")
ONE = Estimate(num_input_tokens=10, num_output_tokens=20)
TOOK = Usage(num_input_tokens=10, num_output_tokens=5)
NOON = 1_800_057_600.0 + 43_200  # UTC


class Clock:
    """Both clocks; scripted, since midnight must not fall into a test."""

    now = NOON

    def __call__(self) -> float:
        return self.now

    def milliseconds(self) -> int:
        return round(self.now * 1000)


@dataclass(frozen=True)
class Record:
    limits: Limits | None


@dataclass
class House:
    server: RedisServer
    links: list[RedisLink]
    clock: Clock

    def limiter(self, num_gateways: int = 2) -> Limiter:
        link = RedisLink.open(self.server.url, timeout=0.5)
        self.links.append(link)
        return Limiter(
            link,
            RedisNames("f"),
            gateway_id="g",
            num_gateways=lambda: num_gateways,
            ledger=Ledger(None, is_shared=True),
            clock=self.clock,
            redis_clock=self.clock.milliseconds,
        )

    async def all_up(self) -> None:
        await until(lambda: all(link.is_up for link in self.links))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    with redis_server() as server:
        made = House(server, [], Clock())
        yield made
        for link in made.links:
            await link.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def burst(limiter: Limiter, limits: Limits, count: int) -> list[Admission]:
    """As many of ``count`` as get through, one after the other."""
    let_through = []
    for _ in range(count):
        try:
            let_through.append(await limiter.admit(ACME, Record(limits), ONE, "base"))
        except GatewayError:
            continue
    return let_through


async def remaining(limiter: Limiter, limits: Limits, kind: str) -> int:
    admission = await limiter.admit(ACME, Record(limits), ONE, "base")
    return int(admission.headers[f"x-ratelimit-remaining-{kind}"])


FREEZE: list[Callable[[RedisServer], None]] = [RedisServer.stop, RedisServer.kill]


@pytest.mark.parametrize("end", FREEZE, ids=["stopped", "killed"])
async def test_without_redis_each_gateway_goes_by_its_share(
    house: House, end: Callable[[RedisServer], None]
) -> None:
    limiters = [house.limiter(), house.limiter()]
    limits = Limits(requests_per_minute=20)
    for limiter in limiters:
        assert len(await burst(limiter, limits, 4)) == 4
    end(house.server)
    # What each has let through in the last minute counts against its half of the limit.
    assert [len(await burst(limiter, limits, 15)) for limiter in limiters] == [6, 6]
    house.clock.now += 61
    assert [len(await burst(limiter, limits, 15)) for limiter in limiters] == [10, 10]
    assert all(limiter.num_alone for limiter in limiters)
    for limiter in limiters:
        limiter.check()


async def test_what_was_used_meanwhile_is_added(house: House) -> None:
    limiter, other = house.limiter(), house.limiter()
    limits = Limits(requests_per_minute=100, output_tokens_per_minute=1000, max_in_flight=50)
    before = await burst(limiter, limits, 2)
    house.server.stop()
    during = await burst(limiter, limits, 10)
    assert len(during) == 10
    for admission in [before[0], *during[:6]]:
        admission.settle(TOOK)
    house.server.cont()
    await house.all_up()
    during[6].settle(TOOK)
    await limiter.tell()
    # 12 requests, 8 of them settled at 5 output tokens, 4 in flight at 20; then this one.
    assert await remaining(other, limits, "requests") == 100 - 13
    assert await remaining(other, limits, "output-tokens") == 1000 - 8 * 5 - 4 * 20 - 2 * 20
    for admission in [*before, *during]:
        admission.settle(TOOK)
    await limiter.tell()
    assert await remaining(other, limits, "output-tokens") == 1000 - 12 * 5 - 3 * 20
    limiter.check()


async def test_a_redis_that_comes_back_empty_learns_all_of_it(house: House) -> None:
    limiters = [house.limiter(), house.limiter()]
    limits = Limits(requests_per_minute=100, budget_tokens_per_day=10_000, max_in_flight=20)
    early = await burst(limiters[0], limits, 2)
    for admission in early:
        admission.settle(Usage(num_input_tokens=3000, num_output_tokens=500))
    await limiters[0].tell()
    house.clock.now += 100  # Out of the window, but not out of the day.
    flying = [await burst(limiter, limits, 3) for limiter in limiters]
    house.server.restart(empty=True)
    await burst(limiters[0], limits, 1)  # Finds out, and opens the breaker.
    await house.all_up()
    for _ in range(2):
        for limiter in limiters:
            await burst(limiter, limits, 1)
            await limiter.tell()
    with house.server.client() as client:
        (tag,) = (key.decode()[: -len(":windows")] for key in client.keys("*:windows"))
        held = [value.decode() for value in client.hmget(f"{tag}:windows", "t1", "spent")]
        assert client.zcard(f"{tag}:flights") == 11, "none is forgotten, none is counted twice"
    assert held == ["11", str(7000 + 11 * 30)]
    for admission in (*flying[0], *flying[1]):
        admission.settle(None)
    for limiter in limiters:
        await limiter.tell()
        limiter.check()
    assert await remaining(limiters[0], limits, "requests") == 94


async def test_the_rest_of_a_budget_is_shared_while_redis_is_away(house: House) -> None:
    limiters = [house.limiter(), house.limiter()]
    limits = Limits(budget_tokens_per_day=4000)
    (large,) = await burst(limiters[0], limits, 1)
    large.settle(Usage(num_input_tokens=3000, num_output_tokens=400))
    await limiters[0].tell()
    for limiter in limiters:
        for admission in await burst(limiter, limits, 1):
            admission.settle(None)
        await limiter.tell()
    house.server.kill()
    # 600 are left, 300 for each, in reserves of 30.
    assert [len(await burst(limiter, limits, 50)) for limiter in limiters] == [10, 10]


async def test_without_any_redis_the_share_is_all_there_is() -> None:
    limiter = Limiter(
        None,
        RedisNames("f"),
        gateway_id="g",
        num_gateways=lambda: 1,
        ledger=Ledger(None, is_shared=False),
        clock=lambda: NOON,
    )
    assert len(await burst(limiter, Limits(requests_per_minute=3), 9)) == 3
    assert len(await burst(limiter, Limits(max_in_flight=0), 1)) == 0
    await limiter.tell()
    await limiter.close()
