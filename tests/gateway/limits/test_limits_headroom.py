"""Requests far from their limits: let through at once, told soon, bounded meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis_server import RedisServer, redis_server

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.limits.headroom import FRESH_MS, UNTOLD_SHARE, Headroom, Use
from branchline.gateway.limits.ledger import Ledger
from branchline.gateway.limits.limiter import Admission, Limiter
from branchline.gateway.limits.limits import Limits
from branchline.gateway.limits.windows import Reserve
from branchline.gateway.types import Caller, Estimate, Usage

ACME = Caller(tenant="acme")
ONE = Estimate(num_input_tokens=10, num_output_tokens=20)
NOON = 1_800_057_600.0 + 43_200
RESERVE = Reserve(0, 10, 20)
LIMITS = (1000, None, None, None, None)


@dataclass(frozen=True)
class Record:
    limits: Limits | None


class CountingLink:
    """A link that counts its calls."""

    is_up = True

    def __init__(self, client: Redis) -> None:
        self.client, self.num_calls = client, 0

    async def run(self, call: Callable[[Redis], Awaitable[Any]]) -> Any:
        self.num_calls += 1
        return await call(self.client)


class House:
    def __init__(self, client: Redis, num_gateways: int = 3) -> None:
        self.now = NOON
        self.links = [CountingLink(client) for _ in range(num_gateways)]
        self.limiters = [
            Limiter(
                cast("RedisLink", link),
                RedisNames("f"),
                gateway_id="g",
                num_gateways=lambda: num_gateways,
                ledger=Ledger(None, is_shared=True),
                clock=lambda: self.now,
                redis_clock=lambda: round(self.now * 1000),
            )
            for link in self.links
        ]

    async def admit(self, index: int, limits: Limits) -> Admission | None:
        try:
            return await self.limiters[index].admit(ACME, Record(limits), ONE, "base")
        except GatewayError:
            return None


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as made:
        yield made


@pytest.fixture
async def client(server: RedisServer) -> Any:
    made = Redis.from_url(server.url, protocol=2)
    await made.flushall()
    yield made
    await made.aclose()


def heard(*used: int, at: float = 0) -> Headroom:
    headroom = Headroom()
    headroom.hear(at, used or (0, 0, 0, 0, 0))
    return headroom


def num_taken(
    headroom: Headroom, limits: tuple[int | None, ...] = LIMITS, gateways: int = 1
) -> int:
    count = 0
    while headroom.take(0, RESERVE, limits, gateways) is not None:
        count += 1
    return count


def test_nothing_is_let_through_before_redis_has_spoken_or_long_after() -> None:
    assert Headroom().take(0, RESERVE, LIMITS, 1) is None
    assert heard().take(FRESH_MS, RESERVE, LIMITS, 1) is not None
    assert heard().take(FRESH_MS + 1, RESERVE, LIMITS, 1) is None


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("gateways", [1, 4])
def test_what_is_untold_stays_a_small_part_of_each_limit(index: int, gateways: int) -> None:
    each = Use.of(RESERVE).amounts[index]
    limits = tuple(each * 4000 if k == index else None for k in range(5))
    headroom = heard()
    assert num_taken(headroom, limits, gateways) == 4000 * UNTOLD_SHARE / gateways
    headroom.send()
    assert num_taken(headroom, limits, gateways) == 0, "sent is not told"
    headroom.told()
    assert num_taken(headroom, limits, gateways) == 4000 * UNTOLD_SHARE / gateways


def test_half_of_each_limit_must_be_free() -> None:
    assert num_taken(heard(495, 0, 0, 0, 0)) == 5
    assert num_taken(heard(500, 0, 0, 0, 0)) == 0


def test_an_answer_that_was_overtaken_frees_nothing() -> None:
    headroom = heard(0, 0, 0, 0, 0, at=10)
    assert num_taken(headroom) == 10
    headroom.send()
    headroom.told()
    headroom.hear(12, (600, 0, 0, 0, 0))
    headroom.hear(11, (10, 0, 0, 0, 0))
    assert num_taken(headroom) == 0
    headroom.forget()
    headroom.hear(9, (10, 0, 0, 0, 0))
    assert num_taken(headroom) == 10, "another Redis, by its own clock"


def test_the_answer_says_what_all_have_used_with_it() -> None:
    headroom = heard(7, 70, 140, 2, 210)
    first = headroom.take(0, RESERVE, LIMITS, 1)
    second = headroom.take(0, RESERVE, LIMITS, 1)
    assert first is not None
    assert second is not None
    assert (first.amounts, second.amounts) == ((8, 80, 160, 3, 240), (9, 90, 180, 4, 270))


async def test_far_from_its_limits_a_tenant_costs_redis_a_call_now_and_then(client: Redis) -> None:
    house = House(client)
    limits = Limits(requests_per_minute=10**6, budget_tokens_per_day=10**9)
    for number in range(500):
        admission = await house.admit(0, limits)
        assert admission is not None
        assert admission.headers["x-ratelimit-remaining-requests"] == str(10**6 - number - 1)
        admission.settle(Usage(num_input_tokens=10, num_output_tokens=3))
        house.now += 0.01
        if number % 10 == 9:
            await house.limiters[0].tell()
    assert house.links[0].num_calls <= 1 + 500 // 10
    assert await client.hmget(f"{RedisNames('f').tenant('acme')}:windows", "t1", "spent") == [
        b"500",
        b"6500",
    ]


async def test_small_limits_are_asked_about_each_time(client: Redis) -> None:
    house = House(client)
    for _ in range(20):
        assert await house.admit(0, Limits(requests_per_minute=200)) is not None
    assert house.links[0].num_calls == 20


async def test_quotas_of_any_size_overshoot_by_a_hundredth_at_most(client: Redis) -> None:
    """All three at once, as fast as they can, told every tenth of a second."""
    limits = Limits(requests_per_minute=6000)
    house = House(client)
    num_let_through = 0
    for _ in range(30):
        for _ in range(100):
            answers = await asyncio.gather(*(house.admit(index, limits) for index in range(3)))
            num_let_through += sum(answer is not None for answer in answers)
        house.now += 0.1
        await asyncio.gather(*(limiter.tell() for limiter in house.limiters))
    assert 6000 <= num_let_through <= 6000 * (1 + UNTOLD_SHARE)
    assert sum(link.num_calls for link in house.links) < 30 * 300, "some were let through at once"
