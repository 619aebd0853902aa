"""Pins, loads and evictions, and engines that come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asgi_client import until
from manager_house import ManagerHouse, manager_house, refused

from branchline.engine.errors import EngineDeadError, RequestError
from branchline.server.errors import ApiError
from branchline.server.text.tokenizer import Tokenizer


@pytest.fixture
async def house(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[ManagerHouse]:
    async with manager_house(tmp_path, tokenizer, max_older=2) as house:
        yield house


async def test_a_pin_is_the_names(house: ManagerHouse) -> None:
    await house.put("a", "one")
    state = await house.manager.pin("a", "device")
    assert (state.pin, state.report and state.report.pin) == ("device", "device")
    assert house.state.read().adapters["a"].pin == "device"
    await house.put("a", "two")
    state = await house.manager.get("a")
    assert state.report is not None
    assert (state.pin, state.report.pin) == ("device", "device"), "the new version has it too"
    state = await house.manager.unpin("a")
    assert (state.pin, state.report and state.report.pin) == (None, None)
    assert house.state.read().adapters["a"].pin is None


async def test_a_pin_that_two_names_share_is_the_stronger_one(house: ManagerHouse) -> None:
    for name in ("a", "b"):
        await house.put(name, "one")
    await house.manager.pin("a", "device")
    state = await house.manager.pin("b", "host")
    assert (state.pin, state.report and state.report.pin) == ("host", "device")
    state = await house.manager.unpin("a")
    assert state.report is not None
    assert state.report.pin == "host"


async def test_what_the_engine_refuses_is_a_409(house: ManagerHouse) -> None:
    await house.put("a", "one")
    house.engine.adapters.errors["pin"] = RequestError("adapter", "too much is pinned")
    assert "too much is pinned" in await refused("adapter_busy", house.manager.pin("a", "host"))
    assert (await house.manager.get("a")).pin is None
    house.engine.adapters.errors.clear()
    await house.manager.pin("a", "device")
    assert "pinned" in await refused("adapter_busy", house.manager.evict("a", "device"))


async def test_a_pin_that_a_new_version_cannot_have_is_an_error_to_be_seen(
    house: ManagerHouse,
) -> None:
    await house.put("a", "one", pin="device")
    house.engine.adapters.errors["pin"] = RequestError("adapter", "too large to pin")
    await house.put("a", "two")
    state = await house.manager.get("a")
    assert house.content("a") == "two", "it is served all the same"
    assert "too large to pin" in str(state.error)


async def test_loads_and_evictions(house: ManagerHouse) -> None:
    await house.put("a", "one")
    tiers = []
    for verb, tier in (
        ("load", "host"),
        ("load", "device"),
        ("evict", "device"),
        ("evict", "host"),
    ):
        state = await getattr(house.manager, verb)("a", tier)
        tiers.append(state.report.tier)
    assert tiers == ["host", "device", "host", "disk"]
    for verb in ("load", "evict", "pin"):
        await refused("adapter_not_found", getattr(house.manager, verb)("gone", "host"), 404)
    await refused("adapter_not_found", house.manager.unpin("gone"), 404)


async def test_a_new_engine_gets_all_that_is_served(house: ManagerHouse) -> None:
    await house.put("a", "one", pin="device")
    await house.put("a", "two")
    await house.put("b", "three")
    await until(lambda: house.loaded == {"two", "three"})
    old = house.engine
    old.die()
    assert (await house.manager.get("a")).report is None
    with pytest.raises(EngineDeadError):
        await house.put("c", "four")
    house.engine = type(old)()
    await house.manager.restart(house.engine)
    house.supervisor.engine = house.engine
    assert house.loaded == {"two", "three"}
    assert (await house.manager.get("a")).report.pin == "device"  # type: ignore[union-attr]
    await house.manager.delete("b", 5)
    assert house.loaded == {"two"}
    await until(lambda: house.contents() == {"one", "two"})


async def test_what_a_new_engine_refuses_fails_alone(house: ManagerHouse) -> None:
    first = await house.put("a", "one")
    await house.put("b", "two")
    house.state.formatted(first.version.digest).unlink()
    house.engine.die()
    house.engine = type(house.engine)()
    await house.manager.restart(house.engine)
    house.supervisor.engine = house.engine
    assert house.content("b") == "two"
    with pytest.raises(ApiError, match="can't be served now") as caught:
        house.catalog.resolve("a")
    assert caught.value.code == "model_not_available"
    assert "missing" in str((await house.manager.get("a")).error)
    await refused("adapter_not_available", house.manager.load("a", "host"))
    result = await house.put("a", "one")
    assert result.changed, "the same bytes heal it"
    assert house.content("a") == "one"
    assert (await house.manager.get("a")).error is None


async def test_one_name_is_a_question_about_one(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = await house.put("a", "one")
    await house.put("b", "two")
    asked: list[object] = []
    real = house.engine.adapters.report

    async def report(digests: list[str] | None) -> Any:
        asked.append(digests)
        return await real(digests)

    monkeypatch.setattr(house.engine.adapters, "report", report)
    state = await house.manager.get("a")
    assert state.report is not None
    assert asked == [[result.version.digest]]


async def test_the_whole_list_is_one_question_to_the_engine(house: ManagerHouse) -> None:
    for name in ("c", "a", "b"):
        await house.put(name, f"content {name}")
    house.engine.adapters.calls.clear()
    states = await house.manager.list()
    assert [state.name for state in states] == ["c", "a", "b"]
    assert house.engine.adapters.calls == [("report",)]
