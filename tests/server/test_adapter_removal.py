"""Versions and names that go while requests hold them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from asgi_client import until
from manager_house import ManagerHouse, manager_house, refused

from branchline.engine.adapter_types import FreedAdapter
from branchline.server.text.tokenizer import Tokenizer


@pytest.fixture
async def house(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[ManagerHouse]:
    async with manager_house(tmp_path, tokenizer, max_older=2) as house:
        yield house


async def test_a_replaced_version_stays_until_its_last_request_ends(house: ManagerHouse) -> None:
    await house.put("a", "one")
    leases = [house.catalog.lease(house.catalog.resolve("a")) for _ in range(2)]
    await house.put("a", "two")
    assert (await house.manager.get("a")).leases == 0, "of the new version"
    leases[0].release()
    for _ in range(100):
        await asyncio.sleep(0)
    assert house.loaded == {"one", "two"}
    leases[1].release()
    await until(lambda: house.loaded == {"two"})


async def test_a_removal_says_what_holds_it_and_what_it_gave_back(house: ManagerHouse) -> None:
    await house.put("a", "one", pin="device")
    lease = house.catalog.lease(house.catalog.resolve("a"))
    result = await house.manager.delete("a", 0.01)
    assert (result.done, result.leases, result.freed) == (False, 1, None)
    assert house.catalog.adapter_names == [], "but the name is gone"
    assert house.contents() == {"one"}
    await refused("adapter_not_found", house.manager.get("a"), 404)
    lease.release()
    await until(lambda: house.loaded == set() and house.contents() == set())
    await refused("adapter_not_found", house.manager.delete("a", 0), 404)


async def test_a_removal_waits_for_the_last_request(house: ManagerHouse) -> None:
    await house.put("a", "one", pin="device")
    lease = house.catalog.lease(house.catalog.resolve("a"))
    removal = asyncio.create_task(house.manager.delete("a", 60))
    await until(lambda: house.catalog.adapter_names == [])
    assert not removal.done()
    lease.release()
    result = await removal
    assert (result.done, result.leases) == (True, 0)
    assert result.freed == FreedAdapter(device_bytes=2000, host_bytes=1000)
    assert house.contents() == set()


async def test_a_name_comes_back_while_its_old_version_is_still_held(house: ManagerHouse) -> None:
    await house.put("a", "one")
    lease = house.catalog.lease(house.catalog.resolve("a"))
    await house.manager.delete("a", 0)
    await house.put("a", "one")
    lease.release()
    for _ in range(100):
        await asyncio.sleep(0)
    assert house.content("a") == "one"
    assert house.contents() == {"one"}


async def test_loops_of_puts_and_removals_under_leases_leave_nothing(house: ManagerHouse) -> None:
    contents = ["one", "two", "three"]

    async def change(name: str) -> None:
        for round_number in range(12):
            await house.put(name, contents[round_number % 3])
            if round_number % 4 == 3:
                await house.manager.delete(name, 0)

    async def request(name: str) -> None:
        while not all(task.done() for task in changes):
            if name in house.catalog.adapter_names:
                lease = house.catalog.lease(house.catalog.resolve(name))
                content = house.content(name)
                for _ in range(3):
                    await asyncio.sleep(0)
                assert content in house.loaded, "what is held stays"
                lease.release()
            await asyncio.sleep(0)

    changes = [asyncio.create_task(change(name)) for name in ("a", "b")]
    await asyncio.gather(*changes, *(request(name) for name in ("a", "b", "a")))
    await until(lambda: house.loaded == set() and house.files() == set())
