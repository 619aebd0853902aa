"""The Lua scripts and their Python twin give the same verdicts for the same history."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis_server import RedisServer, redis_server

from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.limits.limits import Limits
from branchline.gateway.limits.scripts import (
    LEASE_SECONDS,
    News,
    Renewal,
    Settlement,
    TenantKeys,
    admit,
    settle,
)
from branchline.gateway.limits.windows import NOTHING, Reserve, Verdict, Windows

START = 1_800_000_000_000 - 1_800_000_000_000 % 86_400_000 + 86_340_000  # a minute to midnight
LEASE = round(LEASE_SECONDS * 1000)
KEYS = TenantKeys.of(RedisNames("f"), "acme", "g1")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Twins:
    """Both sides, told the same; ``now`` is scripted."""

    def __init__(self, client: Redis, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.windows = Windows()
        self.now = START
        self.sequence = 0
        self.flights: dict[str, Reserve] = {}

    async def admit(self, flight: str, tokens: tuple[int, int]) -> tuple[Verdict, Verdict]:
        mine = self.windows.admit(self.now, flight, self.now + LEASE, tokens, self.limits.in_order)
        theirs, _ = await admit(self.client, KEYS, flight, tokens, self.limits, now=self.now)
        if mine.refused_by is None:
            self.flights[flight] = Reserve(mine.second, *tokens)
        return mine, theirs

    @property
    def used(self) -> tuple[int, ...]:
        windows = self.windows
        return (*windows.used, len(windows.flights), windows.spent)

    async def end(self, final: tuple[int, int, int]) -> tuple[int, ...]:
        flight, reserve = self.flights.popitem()
        self.windows.advance(self.now)
        self.windows.settle(flight, final)
        settlement = Settlement(
            flight=flight, second=reserve.second, final=final, if_unknown=NOTHING
        )
        return await self.tell(settlements=(settlement,))

    async def renew(self) -> tuple[int, ...]:
        """Renews all that both still know."""
        self.windows.advance(self.now)
        held = self.windows.flights
        for flight, (_, reserve) in list(held.items()):
            held[flight] = (self.now + LEASE, reserve)
        known = {flight: held[flight][1] for flight in self.flights if flight in held}
        self.flights = dict(known)
        return await self.tell(
            renewals=tuple(
                Renewal(flight=flight, reserve=reserve, if_unknown=NOTHING)
                for flight, reserve in known.items()
            )
        )

    async def tell(self, **news: object) -> tuple[int, ...]:
        self.sequence += 1
        told = News(sequence=self.sequence, **news)  # type: ignore[arg-type]
        answer = await settle(self.client, KEYS, told, ("", "new"), now=self.now)
        again = await settle(self.client, KEYS, told, ("", "new"), now=self.now)
        self.windows.reap(self.now)
        assert answer == again, "the second time changes nothing"
        return answer.used


counts = st.integers(0, 60)
limit = st.none() | st.integers(0, 100)
some_limits = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(0, 8),
    input_tokens_per_minute=limit,
    output_tokens_per_minute=limit,
    max_in_flight=st.none() | st.integers(0, 5),
    budget_tokens_per_day=st.none() | st.integers(0, 300),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), counts, counts),
        st.tuples(st.just("end"), counts, counts),
        st.tuples(st.just("refund"), st.just(0), st.just(0)),
        st.tuples(st.just("renew"), st.just(0), st.just(0)),
        st.tuples(
            st.just("wait"),
            st.sampled_from([1, 400, 1000, 5900, 14_999, 15_000, 60_000, 61_000, 500_000, -700]),
            st.just(0),
        ),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(limits=some_limits, history=steps)
async def test_same_history_same_verdicts(
    redis: RedisServer, limits: Limits, history: list[tuple[str, int, int]]
) -> None:
    client = Redis.from_url(redis.url, protocol=2)
    await client.flushall()
    twins = Twins(client, limits)
    try:
        for index, (action, first, second) in enumerate(history):
            if action == "admit":
                mine, theirs = await twins.admit(f"f{index}", (first, second))
                assert mine == theirs
            elif action == "wait":
                twins.now += first
            elif action == "renew":
                assert await twins.renew() == twins.used
            elif twins.flights:
                final = NOTHING if action == "refund" else (1, first, second)
                assert await twins.end(final) == twins.used
    finally:
        await client.aclose()
