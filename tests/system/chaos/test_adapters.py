"""An adapter that is replaced while it streams, and a replica that dies in the midst of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from chaos_cases import SERVE_FLAGS, ChaosModels, body
from gateway_process import Fleet, fleet
from stream_load import Case, Streamed, stream_once
from tiny_adapters import make_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

NAME = "moving"
SECONDS = 20.0


@pytest.fixture(scope="module")
def rooted(chaos_models: ChaosModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet whose replicas may load from a directory of two versions."""
    root = tmp_path_factory.mktemp("versions")
    for number in (1, 2):
        make_adapter(chaos_models.model, root / f"v{number}", 8, seed=40 + number)
    flags = (*SERVE_FLAGS, "--adapter-root", str(root))
    with fleet(chaos_models.model, serve_flags=flags) as running:
        running.root = root  # type: ignore[attr-defined]
        yield running


def put(house: Fleet, source: Path) -> None:
    answer = httpx.put(
        f"{house.url}/admin/adapters/{NAME}", json={"source": str(source)}, timeout=60
    )
    assert answer.status_code in (200, 201), answer.text


def test_each_stream_is_of_one_version_whole(rooted: Fleet) -> None:
    root: Path = rooted.root  # type: ignore[attr-defined]
    case = Case("moving", body(NAME, "Which one are you?"))
    versions = {}
    for number in (1, 2):
        put(rooted, root / f"v{number}")
        versions[number] = asyncio.run(ask(rooted.url, case))
    assert versions[1].texts != versions[2].texts
    seen = asyncio.run(stream_through_changes(rooted, case, root))
    assert len(seen) >= 20
    for answer in seen:
        assert answer in versions.values()
    assert all(version in seen for version in versions.values())


async def ask(url: str, case: Case) -> Streamed:
    async with client(url) as one:
        return (await stream_once(one, case))[0]


async def stream_through_changes(house: Fleet, case: Case, root: Path) -> list[Streamed]:
    """Streams from five clients while the name moves, and once a replica dies."""
    deadline = time.monotonic() + SECONDS
    seen: list[Streamed] = []

    async def go_on(one: openai.AsyncOpenAI) -> None:
        while time.monotonic() < deadline:
            seen.append((await stream_once(one, case))[0])

    async def change() -> None:
        number, killed = 1, False
        while time.monotonic() < deadline:
            await asyncio.to_thread(put, house, root / f"v{number}")
            number = 3 - number
            await asyncio.sleep(0.5)
            if not killed and time.monotonic() > deadline - SECONDS / 2:
                killed = True
                await asyncio.to_thread(house.kill, "replica-2")

    async with client(house.url) as one:
        await asyncio.gather(change(), *(go_on(one) for _ in range(5)))
    return seen


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=90)
