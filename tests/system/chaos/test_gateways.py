"""A gateway that dies: its clients see it, come again elsewhere, and get the same text."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from chaos_cases import BASE, SERVE_FLAGS, ChaosModels, body
from gateway_process import Fleet, fleet
from server_process import wait_for
from stream_load import Case, Streamed, stream_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

LIMITS = {"max_in_flight": 4, "output_tokens_per_minute": 100_000}
LEASE_SECONDS = 60.0


@pytest.fixture(scope="module")
def two_gateways(chaos_models: ChaosModels) -> Iterator[Fleet]:
    with fleet(chaos_models.model, gateways=2, serve_flags=SERVE_FLAGS) as running:
        yield running


def test_an_interrupted_stream_ends_visibly_and_its_retry_is_the_same(
    two_gateways: Fleet,
) -> None:
    house = two_gateways
    key = tenant_key(house.url)
    case = Case("long", body(BASE, "Speak on.", max_tokens=900, temperature=1.0, seed=4))
    first, second = (client(gateway.base_url, key) for gateway in house.gateways)

    async def interrupted() -> int:
        """Chunks that came before the gateway died."""
        seen = 0
        try:
            async for _ in await first.chat.completions.create(**case.body, stream=True):
                seen += 1
                if seen == 5:
                    house.gateways[0].process.send_signal(signal.SIGKILL)
        except (openai.APIError, httpx.HTTPError):
            return seen
        raise AssertionError("the stream ended as if nothing had happened")

    async def drive() -> None:
        want, _ = await stream_once(second, case)
        others = [asyncio.create_task(_quietly(first, case)) for _ in range(3)]
        assert await interrupted() >= 5
        await asyncio.gather(*others)
        assert await _again(second, case) == want
        await first.close()
        await second.close()

    asyncio.run(drive())
    nothing_leaks(house, house.gateways[1].base_url, key)


async def _again(client: openai.AsyncOpenAI, case: Case) -> Streamed:
    """The answer, once the dead gateway's places in flight are given back."""
    deadline = time.monotonic() + LEASE_SECONDS
    while True:
        try:
            return (await stream_once(client, case))[0]
        except openai.RateLimitError as error:
            assert time.monotonic() < deadline
            await asyncio.sleep(float(error.response.headers["retry-after"]))


async def _quietly(client: openai.AsyncOpenAI, case: Case) -> None:
    """Hold a place in flight until the gateway dies."""
    try:
        await stream_once(client, case)
    except (openai.APIError, httpx.HTTPError):
        return


def nothing_leaks(house: Fleet, url: str, key: str) -> None:
    """What the dead gateway had reserved is given back: all four places can be had at once."""
    deadline = time.monotonic() + LEASE_SECONDS
    while True:
        statuses = asyncio.run(four_at_once(url, key))
        if statuses == [200] * 4:
            return
        assert time.monotonic() < deadline, (statuses, house.output())
        time.sleep(1)


async def four_at_once(url: str, key: str) -> list[int]:
    fields = {"model": BASE, "prompt": "x", "max_tokens": 64, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/completions", json=fields) for _ in range(4))
        )
    return [answer.status_code for answer in answers]


def test_the_other_gateway_forgets_the_dead_one(two_gateways: Fleet) -> None:
    """After the test before: one of two is gone, and counted out."""
    wait_for(
        lambda: len(two_gateways.state(1)["gateways"]) == 1, 30.0, two_gateways.gateways[1].output
    )


def tenant_key(url: str) -> str:
    put = httpx.put(f"{url}/admin/tenants/acme", json={"limits": LIMITS}, timeout=10)
    assert put.status_code in (200, 201), put.text
    return str(httpx.post(f"{url}/admin/tenants/acme/keys", timeout=10).json()["key"])


def client(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=90)
