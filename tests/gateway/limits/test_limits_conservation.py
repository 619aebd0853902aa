"""Whatever is lost on the way to Redis, each request ends up counted once, as it really was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis_server import RedisServer, redis_server

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.connection import RedisDown, RedisLink
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.limits.ledger import Ledger
from branchline.gateway.limits.limiter import Admission, Limiter
from branchline.gateway.limits.limits import Limits
from branchline.gateway.types import Caller, Estimate, Usage

NAMES = RedisNames("f")
NOON = 1_800_057_600.0 + 43_200
LIMITS = Limits(
    requests_per_minute=60,
    output_tokens_per_minute=900,
    max_in_flight=12,
    budget_tokens_per_day=100_000,
)
PLENTY = Limits(
    requests_per_minute=10**6,
    input_tokens_per_minute=10**7,
    output_tokens_per_minute=10**7,
    max_in_flight=10**4,
    budget_tokens_per_day=10**9,
)
"""So far off that most requests are let through before Redis knows of them."""
MAX_SECONDS = 55.0  # so that the window still holds everything at the end


@dataclass(frozen=True)
class Record:
    limits: Limits | None = LIMITS


@dataclass
class Road:
    """Stands in for RedisLink: ``trouble`` is what the next call meets."""

    client: Redis
    trouble: str = ""
    is_up: bool = True

    async def run(self, call: Callable[[Redis], Awaitable[Any]]) -> Any:
        if not self.is_up:
            raise RedisDown("down")
        trouble, self.trouble = self.trouble, ""
        if trouble == "not sent":
            self.is_up = False
            raise RedisDown("lost")
        answer = await call(self.client)
        if trouble == "answer lost":
            self.is_up = False
            raise RedisDown("lost")
        return answer


@dataclass
class Gateways:
    roads: list[Road]
    limits: Limits = LIMITS
    now: float = NOON
    limiters: list[Limiter] = field(default_factory=list)
    flying: list[tuple[int, Admission]] = field(default_factory=list)
    num_settled: int = 0
    num_output_tokens: int = 0
    num_refunded: int = 0

    def __post_init__(self) -> None:
        for road in self.roads:
            limiter = Limiter(
                cast("RedisLink", road),
                NAMES,
                gateway_id="g",
                num_gateways=lambda: len(self.roads),
                ledger=Ledger(None, is_shared=True),
                clock=lambda: self.now,
                redis_clock=lambda: round(self.now * 1000),
            )
            self.limiters.append(limiter)

    async def admit(self, index: int) -> None:
        estimate = Estimate(num_input_tokens=7, num_output_tokens=40)
        try:
            admission = await self.limiters[index].admit(
                Caller(tenant="acme"), Record(self.limits), estimate, "base"
            )
        except GatewayError:
            return
        self.flying.append((index, admission))

    def settle(self, number: int, num_output_tokens: int | None) -> None:
        if not self.flying:
            return
        _, admission = self.flying.pop(number % len(self.flying))
        if num_output_tokens is None:
            admission.settle(None)
            return
        admission.settle(Usage(num_input_tokens=7, num_output_tokens=num_output_tokens))
        self.num_settled += 1
        self.num_output_tokens += num_output_tokens

    async def tell(self, index: int) -> None:
        try:
            await self.limiters[index].tell()
            await self.limiters[index].tell_usage()
        except RedisDown:
            pass
        self.limiters[index].check()

    async def come_to_rest(self) -> None:
        for road in self.roads:
            road.is_up, road.trouble = True, ""
        for _ in range(3):
            for index in range(len(self.limiters)):
                await self.tell(index)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as made:
        yield made


who = st.integers(0, 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), who, st.just(0)),
        st.tuples(st.just("admit"), who, st.just(0)),
        st.tuples(st.just("settle"), st.integers(0, 20), st.none() | st.integers(0, 40)),
        st.tuples(st.just("tell"), who, st.just(0)),
        st.tuples(st.just("trouble"), who, st.sampled_from(["not sent", "answer lost"])),
        st.tuples(st.just("heal"), who, st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.3, 6.0, 16.0]), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


async def play(gateways: Gateways, client: Redis, history: list[tuple[Any, ...]]) -> None:
    for action, first, second in history:
        if action == "admit":
            await gateways.admit(first)
        elif action == "settle":
            gateways.settle(first, second)
        elif action == "tell":
            await gateways.tell(first)
        elif action == "trouble":
            gateways.roads[first].trouble = second
        elif action == "heal":
            gateways.roads[first].is_up = True
        elif action == "wait" and gateways.now + first < NOON + MAX_SECONDS:
            gateways.now += first
        elif action == "empty":
            await client.flushall()


async def held(client: Redis) -> list[int]:
    """Requests, input, output, spent and flights as Redis has them."""
    tag = NAMES.tenant("acme")
    values = await client.hmget(f"{tag}:windows", ["t1", "t2", "t3", "spent"])
    return [*(int(value or 0) for value in values), await client.zcard(f"{tag}:flights")]


@pytest.mark.parametrize("limits", [LIMITS, PLENTY], ids=["near", "far"])
@settings(max_examples=150, deadline=None)
@given(history=steps)
async def test_each_request_counts_once(
    server: RedisServer, limits: Limits, history: list[Any]
) -> None:
    client = Redis.from_url(server.url, protocol=2)
    try:
        await client.flushall()
        gateways = Gateways([Road(client), Road(client)], limits)
        await play(gateways, client, history)
        await gateways.come_to_rest()
        requests, _, output, _, flights = await held(client)
        flying = len(gateways.flying)
        assert flights == flying
        assert requests == gateways.num_settled + flying
        assert output == gateways.num_output_tokens + 40 * flying
        while gateways.flying:
            gateways.settle(0, 3)
        await gateways.come_to_rest()
        done, took = gateways.num_settled, gateways.num_output_tokens
        assert await held(client) == [done, 7 * done, took, 7 * done + took, 0]
    finally:
        await client.aclose()
