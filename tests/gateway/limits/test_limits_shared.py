"""Several limiters, one Redis: what they let through together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from redis_server import RedisServer, redis_server

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.limits.ledger import Ledger
from branchline.gateway.limits.limiter import Admission, Limiter
from branchline.gateway.limits.limits import Limits
from branchline.gateway.limits.scripts import LEASE_SECONDS
from branchline.gateway.types import Caller, Estimate, Usage

DAY_START = 1_800_057_600.0  # a midnight UTC
ACME = Caller(tenant="acme")
ONE = Estimate(num_input_tokens=10, num_output_tokens=20)


@dataclass
class Clock:
    now: float = DAY_START + 1000.0

    def __call__(self) -> float:
        return self.now

    def milliseconds(self) -> int:
        return round(self.now * 1000)


@dataclass
class Record:
    limits: Limits | None


class House:
    """Gateways' limiters, each over a link of its own, on one scripted clock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.links: list[RedisLink] = []

    def limiter(self, name: str = "g") -> Limiter:
        link = RedisLink.open(self.url, timeout=5.0)
        self.links.append(link)
        return Limiter(
            link,
            RedisNames("f"),
            gateway_id=name,
            num_gateways=lambda: 3,
            ledger=Ledger(None, is_shared=True),
            clock=self.clock,
            redis_clock=self.clock.milliseconds,
        )


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def house(redis: RedisServer) -> AsyncIterator[House]:
    with redis.client() as client:
        client.flushall()
    made = House(redis.url)
    yield made
    for link in made.links:
        await link.close()


async def attempt(
    limiter: Limiter, limits: Limits, estimate: Estimate = ONE
) -> Admission | GatewayError:
    try:
        return await limiter.admit(ACME, Record(limits), estimate, "base")
    except GatewayError as error:
        return error


async def admitted(limiter: Limiter, limits: Limits, estimate: Estimate = ONE) -> Admission:
    answer = await attempt(limiter, limits, estimate)
    assert isinstance(answer, Admission), answer
    return answer


async def refused(limiter: Limiter, limits: Limits, estimate: Estimate = ONE) -> GatewayError:
    answer = await attempt(limiter, limits, estimate)
    assert isinstance(answer, GatewayError), "it was let through"
    return answer


async def test_no_sixty_seconds_see_more_requests_than_the_limit(house: House) -> None:
    limiters = [house.limiter() for _ in range(3)]
    limits = Limits(requests_per_minute=50)
    times: list[float] = []
    for _ in range(400):
        house.clock.now += 0.37
        answers = await asyncio.gather(*(attempt(limiter, limits) for limiter in limiters))
        times += [house.clock.now for answer in answers if isinstance(answer, Admission)]
    most = max(sum(1 for t in times if first <= t < first + 60) for first in times)
    assert most == 50
    assert len(times) >= 100, "room came back"


@pytest.mark.parametrize("field", ["input_tokens_per_minute", "output_tokens_per_minute"])
async def test_token_limits_count_what_was_really_used(house: House, field: str) -> None:
    first, second = house.limiter(), house.limiter()
    limits = Limits(**{field: 100})
    large = Estimate(num_input_tokens=90, num_output_tokens=90)
    admission = await admitted(first, limits, large)
    assert (
        f"{field} is 100, used or reserved are 90" in (await refused(second, limits, large)).message
    )
    admission.settle(Usage(num_input_tokens=5, num_output_tokens=5))
    await first.tell()
    answer = await admitted(second, limits, large)
    kind = field.split("_")[0]
    assert answer.headers[f"x-ratelimit-remaining-{kind}-tokens"] == "5"


async def test_more_than_the_whole_limit_is_let_into_an_empty_window(house: House) -> None:
    limiter = house.limiter()
    limits = Limits(output_tokens_per_minute=100)
    large = Estimate(num_input_tokens=1, num_output_tokens=4096)
    await admitted(limiter, limits, large)
    answer = await refused(limiter, limits)
    assert answer.headers["retry-after"] == "61"
    house.clock.now += 61
    await admitted(limiter, limits, large)


async def test_in_flight_is_exact_across_gateways(house: House) -> None:
    limiters = [house.limiter() for _ in range(3)]
    limits = Limits(max_in_flight=7)
    tries = [attempt(limiters[i % 3], limits) for i in range(60)]
    admissions = [a for a in await asyncio.gather(*tries) if isinstance(a, Admission)]
    assert len(admissions) == 7
    for admission in admissions[:3]:
        admission.settle(None)
    await asyncio.gather(*(limiter.tell() for limiter in limiters))
    tries = [attempt(limiters[i % 3], limits) for i in range(60)]
    assert sum(isinstance(a, Admission) for a in await asyncio.gather(*tries)) == 3


async def test_a_dead_gateways_flights_expire(house: House) -> None:
    dead, alive = house.limiter(), house.limiter()
    limits = Limits(max_in_flight=2, output_tokens_per_minute=50, input_tokens_per_minute=1000)
    await admitted(dead, limits)
    mine = await admitted(alive, limits)
    for _ in range(4):
        house.clock.now += LEASE_SECONDS / 3 + 0.1
        await alive.tell()
    answer = await admitted(alive, limits)
    # The dead one's input stays counted, its output does not.
    assert answer.headers["x-ratelimit-remaining-input-tokens"] == "970"
    assert answer.headers["x-ratelimit-remaining-output-tokens"] == "10"
    mine.settle(Usage(num_input_tokens=10, num_output_tokens=1))
    await alive.tell()
    answer = await admitted(alive, limits)
    assert answer.headers["x-ratelimit-remaining-output-tokens"] == "9"


async def test_a_paused_gateways_flight_is_counted_again_when_it_settles(house: House) -> None:
    paused, other = house.limiter(), house.limiter()
    limits = Limits(output_tokens_per_minute=100, max_in_flight=5)
    admission = await admitted(paused, limits)
    house.clock.now += LEASE_SECONDS + 1
    answer = await admitted(other, limits)
    assert answer.headers["x-ratelimit-remaining-output-tokens"] == "80", "its reserve is free"
    admission.settle(Usage(num_input_tokens=10, num_output_tokens=15))
    await paused.tell()
    answer = await admitted(other, limits)
    assert answer.headers["x-ratelimit-remaining-output-tokens"] == "45"


async def test_the_budget_is_not_exceeded_by_more_than_one_reserve(house: House) -> None:
    limiters = [house.limiter() for _ in range(3)]
    limits = Limits(budget_tokens_per_day=1000)
    total, in_flight = 0, []
    for step in range(60):
        tries = await asyncio.gather(*(attempt(limiter, limits) for limiter in limiters))
        in_flight += [a for a in tries if isinstance(a, Admission)]
        if step % 2 and in_flight:
            in_flight.pop(0).settle(Usage(num_input_tokens=10, num_output_tokens=20))
            total += 30
            await asyncio.gather(*(limiter.tell() for limiter in limiters))
        assert total + 30 * len(in_flight) <= 1000 + 30
    assert total + 30 * len(in_flight) >= 1000, "all of it can be had"


async def test_a_budget_ends_at_midnight(house: House) -> None:
    limiter = house.limiter()
    limits = Limits(budget_tokens_per_day=25)
    house.clock.now = DAY_START - 90.5
    admission = await admitted(limiter, limits)
    answer = await refused(limiter, limits)
    assert (answer.status, answer.code) == (429, "insufficient_quota")
    assert answer.headers["retry-after"] == "91"
    house.clock.now = DAY_START + 0.1
    await admitted(limiter, limits)
    admission.settle(Usage(num_input_tokens=900, num_output_tokens=900))
    await limiter.tell()
    assert "used or reserved are 30" in (await refused(limiter, limits)).message


async def test_a_refused_request_takes_nothing(house: House) -> None:
    limiter = house.limiter()
    limits = Limits(requests_per_minute=10, input_tokens_per_minute=1000, max_in_flight=1)
    first = await admitted(limiter, limits)
    for _ in range(20):
        assert "max_in_flight is 1" in (await refused(limiter, limits)).message
    first.settle(None)
    await limiter.tell()
    answer = await admitted(limiter, limits)
    assert answer.headers["x-ratelimit-remaining-requests"] == "9", "a refund is of the request too"
    assert answer.headers["x-ratelimit-remaining-input-tokens"] == "990"


@pytest.mark.parametrize("asked", [-(10**30), -5, 10**30])
async def test_absurd_estimates_wipe_nothing_out(house: House, asked: int) -> None:
    limiter = house.limiter()
    limits = Limits(budget_tokens_per_day=100_000, output_tokens_per_minute=1000)
    (await admitted(limiter, limits)).settle(Usage(num_input_tokens=700, num_output_tokens=77))
    await limiter.tell()
    absurd = Estimate(num_input_tokens=asked, num_output_tokens=asked)
    answer = await attempt(limiter, limits, absurd)
    if isinstance(answer, Admission):
        answer.settle(None)
    await limiter.tell()
    answer = await admitted(limiter, limits)
    assert answer.headers["x-ratelimit-remaining-output-tokens"] == str(1000 - 77 - 20)
    enough = Limits(budget_tokens_per_day=777 + 30)
    assert "used or reserved are 807" in (await refused(limiter, enough)).message


async def test_settling_twice_counts_once(house: House) -> None:
    limiter = house.limiter()
    limits = Limits(input_tokens_per_minute=1000)
    admission = await admitted(limiter, limits)
    for _ in range(3):
        admission.settle(Usage(num_input_tokens=4, num_output_tokens=4))
        await limiter.tell()
    answer = await admitted(limiter, limits)
    assert answer.headers["x-ratelimit-remaining-input-tokens"] == "986"
    limiter.check()


async def test_a_client_that_leaves_during_the_call_takes_nothing(house: House) -> None:
    limiter = house.limiter()
    limits = Limits(max_in_flight=3, requests_per_minute=100)
    tasks = [asyncio.create_task(attempt(limiter, limits)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.02)
    await limiter.tell()
    for remaining in (99, 98, 97):
        answer = await admitted(limiter, limits)
        assert answer.headers["x-ratelimit-remaining-requests"] == str(remaining)


async def test_without_limits_redis_is_not_asked(house: House, redis: RedisServer) -> None:
    limiter = house.limiter()
    with redis.client() as client:
        before = client.info("stats")["total_commands_processed"]
        for limits in (None, Limits()):
            admission = await limiter.admit(ACME, Record(limits), ONE, "base")
            admission.settle(Usage(num_input_tokens=1, num_output_tokens=1))
            assert admission.headers == {}
        (await limiter.admit(ACME, None, ONE, "base")).settle(None)
        await limiter.tell()
        assert client.info("stats")["total_commands_processed"] == before + 1


async def test_tenants_do_not_share(house: House) -> None:
    limiter = house.limiter()
    limits = Record(Limits(requests_per_minute=1))
    await limiter.admit(Caller(tenant="acme"), limits, ONE, "base")
    await limiter.admit(Caller(tenant="acme:x"), limits, ONE, "base")
    with pytest.raises(GatewayError):
        await limiter.admit(Caller(tenant="acme"), limits, ONE, "base")
    assert limiter.refused == {"requests_per_minute": 1}
