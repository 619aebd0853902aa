"""Versions that come back, and names that come anew, while something else is still going on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from asgi_client import until
from manager_house import ManagerHouse, manager_house, refused, write_adapter

from branchline.lora.errors import AdapterError
from branchline.server.adapters.sources import AdapterSource
from branchline.server.aliases import AliasTarget
from branchline.server.text.tokenizer import Tokenizer

Back = Callable[[ManagerHouse], Any]

BACK: dict[str, Back] = {
    "rollback": lambda house: house.manager.rollback("a", 1),
    "alias": lambda house: house.manager.put_alias("live", [AliasTarget("a", 1)]),
    "put": lambda house: house.put("a", "one"),
}


@pytest.fixture
async def house(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[ManagerHouse]:
    async with manager_house(tmp_path, tokenizer, max_older=2) as house:
        yield house


@pytest.mark.parametrize("verb", BACK)
async def test_what_comes_back_while_the_engine_removes_it(house: ManagerHouse, verb: str) -> None:
    await house.put("a", "one")
    engine = house.engine.adapters
    engine.go.clear()  # the engine is in a long step
    await house.put("a", "two")
    await until(lambda: any(call[0] == "remove" for call in engine.calls))
    back = asyncio.create_task(BACK[verb](house))
    for _ in range(100):
        await asyncio.sleep(0)
    engine.go.set()
    await back
    assert house.content("live" if verb == "alias" else "a") == "one"


async def test_a_put_does_not_wait_for_what_it_replaces(house: ManagerHouse) -> None:
    await house.put("a", "one", pin="host")
    house.engine.adapters.go.clear()
    async with asyncio.timeout(5):
        result = await house.put("a", "two")
    assert (result.version.number, house.loaded) == (2, {"one", "two"})
    house.engine.adapters.go.set()
    await until(lambda: house.loaded == {"two"})


async def put_while(house: ManagerHouse, directory: Path, change: Callable[[], object]) -> None:
    """A put of a directory in which something happens while it waits to be formatted."""
    house.loader.go.clear()
    num_jobs = len(house.loader.jobs)
    source = AdapterSource("directory", str(directory))
    putting = asyncio.create_task(house.manager.put("a", source))
    await until(lambda: len(house.loader.jobs) > num_jobs)
    change()
    house.loader.go.set()
    await putting


async def test_a_source_that_changes_while_it_waits_is_refused(house: ManagerHouse) -> None:
    june, july = ("{{ 'june' }}", "{{ 'july' }}")
    directory = write_adapter(house.root / "sources" / "live", "june", june)
    log = directory / "train.log"
    await put_while(house, directory, lambda: log.write_text("step 1"))
    with pytest.raises(AdapterError, match="changed while they were read"):
        await put_while(house, directory, lambda: write_adapter(directory, "july", july))
    assert (house.content("a"), house.catalog.resolve("a").chat_template) == ("june", june)
    with pytest.raises(AdapterError, match="changed while they were read"):
        await put_while(house, directory, (directory / "chat_template.jinja").unlink)
    await until(lambda: len(house.files()) == 2)
    assert {Path(name).name for name in house.files() if "texts" in name} == {"chat_template.jinja"}


@pytest.mark.parametrize("verb", ["rollback", "alias"])
async def test_a_name_that_comes_anew_meanwhile_is_not_gone_back_to(
    house: ManagerHouse, verb: str
) -> None:
    await house.put("a", "one")
    house.engine.adapters.go.clear()
    await house.put("a", "two")
    num_jobs = len(house.loader.jobs)
    back = asyncio.create_task(BACK[verb](house))
    await until(lambda: len(house.loader.jobs) > num_jobs)
    await house.manager.delete("a", 0)
    for content in ("three", "four"):
        await house.put("a", content)
    house.engine.adapters.go.set()
    await refused("adapter_changed", back)
    assert house.content("a") == "four"
    await until(lambda: house.loaded == {"four"})
