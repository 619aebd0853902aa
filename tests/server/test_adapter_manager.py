"""Puts over an engine in memory: what is served, what is left, what is said."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from asgi_client import until
from manager_house import ManagerHouse, manager_house, refused

from branchline.engine.adapter_types import FreedAdapter
from branchline.engine.errors import RequestError
from branchline.lora.errors import AdapterError
from branchline.server.adapters.sources import AdapterSource
from branchline.server.adapters.state import StateError
from branchline.server.aliases import AliasTarget
from branchline.server.errors import ApiError
from branchline.server.text.tokenizer import Tokenizer


@pytest.fixture
async def house(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[ManagerHouse]:
    async with manager_house(tmp_path, tokenizer, max_older=2) as house:
        yield house


async def test_a_put_serves_a_name(house: ManagerHouse) -> None:
    result = await house.put("a", "one")
    assert (result.created, result.changed, result.version.number) == (True, True, 1)
    assert house.content("a") == "one"
    assert house.contents() == {"one"}
    model = house.catalog.resolve("a")
    assert (model.version, model.root) == (1, str(house.root / "sources/one"))
    assert house.state.read().adapters["a"].current == result.version


async def test_new_bytes_are_a_new_version(house: ManagerHouse) -> None:
    await house.put("a", "one")
    result = await house.put("a", "two")
    assert (result.created, result.changed, result.version.number) == (False, True, 2)
    assert house.content("a") == "two"
    await until(lambda: house.loaded == {"two"})
    assert house.contents() == {"one", "two"}, "its memory is given back, its file is kept"


async def test_the_same_bytes_change_nothing(house: ManagerHouse) -> None:
    first = await house.put("a", "one")
    calls = list(house.engine.adapters.calls)
    again = await house.put("a", "one")
    assert (again.created, again.changed) == (False, False)
    assert again.version == first.version
    assert house.engine.adapters.calls == calls
    assert house.contents() == {"one"}


async def test_older_bytes_are_a_new_version_too(house: ManagerHouse) -> None:
    for content in ("one", "two", "one"):
        result = await house.put("a", content)
    assert result.version.number == 3
    assert house.content("a") == "one"
    await until(lambda: house.loaded == {"one"})


async def test_only_so_many_older_versions_are_kept(house: ManagerHouse) -> None:
    for content in ("one", "two", "three", "four"):
        await house.put("a", content)
    assert [version.number for version in house.manager.versions("a")] == [2, 3, 4]
    await until(lambda: house.contents() == {"two", "three", "four"})


@pytest.mark.parametrize("step", ["fetch", "format", "add", "pin", "write"])
async def test_a_put_that_fails_leaves_nothing(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await house.put("a", "one")
    before, calls = house.state.read(), house.engine.adapters
    source = house.source("bad" if step == "format" else "two")
    if step == "fetch":
        source = AdapterSource("directory", "/etc")
    if step in ("add", "pin"):
        calls.errors[step] = RequestError("adapter", "no room")

    def full(registry: object) -> None:
        raise StateError("registry.json can't be written: No space left on device")

    if step == "write":
        monkeypatch.setattr(house.state, "write", full)
    for name in ("a", "new"):
        with pytest.raises((AdapterError, ApiError, RequestError)):
            await house.manager.put(name, source, pin="device" if step == "pin" else None)
    monkeypatch.undo()
    calls.errors.clear()
    assert house.content("a") == "one", "the old version goes on serving"
    assert house.catalog.adapter_names == ["a"]
    assert house.loaded == {"one"}
    assert house.state.read() == before
    await until(lambda: house.files() == {f"adapters/{Path(p).name}" for p in kept(house)})
    error = (await house.manager.get("a")).error
    assert error, "and the name says what happened"
    await house.put("a", "two")
    assert (await house.manager.get("a")).error is None


@pytest.mark.parametrize("step", ["new_work", "move_in", "flush"])
async def test_a_full_disk_is_said(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(house.state, step, full)
        message = await refused("state_not_written", house.put("a", "one"), 500)
    assert "No space left on device" in message
    await until(lambda: house.files() == set() and house.loaded == set())
    assert (await house.put("a", "one")).created


async def test_the_pin_of_a_put_that_fails_is_ended(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.put("a", "one")

    def full(registry: object) -> None:
        raise StateError("registry.json can't be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(house.state, "write", full)
        await refused("state_not_written", house.put("b", "one", pin="device"), 500)
    [report] = house.engine.adapters.reports.values()
    assert report.pin is None, "a has no pin"


def kept(house: ManagerHouse) -> list[Path]:
    return [house.state.formatted(v.digest) for v in house.manager.versions("a")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../etc", "is not a name"),
        ("", "is not a name"),
        ("a b", "is not a name"),
        ("a/pin", "verb of the API"),
        ("x" * 129, "is not a name"),
    ],
)
async def test_bad_names_are_refused(house: ManagerHouse, name: str, words: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(words)) as caught:
        await house.put(name, "one")
    assert caught.value.field == "name"
    with pytest.raises(AdapterError, match=re.escape(words)) as caught:
        await house.manager.put_alias(name, [AliasTarget("a")])
    assert caught.value.field == "alias"
    assert house.loader.jobs == []


async def test_names_belong_to_one_kind(house: ManagerHouse) -> None:
    await house.put("a", "one")
    await house.manager.put_alias("live", [AliasTarget("a")])
    message = await refused("name_taken", house.put("live", "one"))
    assert "alias" in message
    assert "base model" in await refused("name_taken", house.put("base", "one"))
    await refused("name_taken", house.manager.put_alias("a", [AliasTarget("a")]))
    await refused("name_taken", house.manager.put_alias("base", [AliasTarget("a")]))


async def test_a_name_taken_while_its_adapter_was_formatted(house: ManagerHouse) -> None:
    await house.put("a", "one")
    house.loader.go.clear()
    putting = asyncio.create_task(house.put("b", "two"))
    await until(lambda: house.loader.num_formatted == 2)
    await house.manager.put_alias("b", [AliasTarget("a")])
    house.loader.go.set()
    await refused("name_taken", putting)
    assert house.content("b") == "one"
    await until(lambda: house.contents() == {"one"} and house.loaded == {"one"})


async def test_puts_of_one_name_queue_and_of_several_do_not(house: ManagerHouse) -> None:
    house.loader.go.clear()
    puts = [asyncio.create_task(house.put("a", content)) for content in ("one", "two")]
    other = asyncio.create_task(house.put("b", "three"))
    await until(lambda: house.loader.num_formatted == 2)
    for _ in range(100):
        await asyncio.sleep(0)
    assert house.loader.num_formatted == 2, "one of each name"
    house.loader.go.set()
    results = await asyncio.gather(*puts, other)
    assert [result.version.number for result in results] == [1, 2, 1]
    assert (house.content("a"), house.content("b")) == ("two", "three")


async def test_who_leaves_before_it_is_formatted_ends_the_put(house: ManagerHouse) -> None:
    house.loader.go.clear()
    putting = asyncio.create_task(house.put("a", "one"))
    await until(lambda: house.loader.num_formatted == 1)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    house.loader.go.set()
    await until(lambda: house.files() == set())
    assert house.catalog.adapter_names == []
    await house.put("a", "one")


async def test_who_leaves_afterwards_does_not(house: ManagerHouse) -> None:
    house.engine.go.clear()  # the engine takes its time to answer
    putting = asyncio.create_task(house.put("a", "one"))
    await until(lambda: any(house.state.adapters.iterdir()))
    for _ in range(100):
        await asyncio.sleep(0)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    house.engine.go.set()
    await until(lambda: house.catalog.adapter_names == ["a"])
    assert house.content("a") == "one"
    assert house.state.read().adapters.keys() == {"a"}


async def test_names_with_equal_bytes_share_them(house: ManagerHouse) -> None:
    for name in ("a", "b"):
        await house.put(name, "one")
    adds = [call for call in house.engine.adapters.calls if call[0] == "add"]
    assert len(adds) == 1
    gone = await house.manager.delete("a", 5)
    assert (gone.done, gone.freed) == (True, None), "b still has them"
    assert house.content("b") == "one"
    assert house.contents() == {"one"}
    last = await house.manager.delete("b", 5)
    assert last.freed == FreedAdapter(device_bytes=0, host_bytes=0)
    assert (house.loaded, house.contents()) == (set(), set())


async def test_a_template_of_its_own_makes_a_version(house: ManagerHouse) -> None:
    await house.put("a", "one")
    template = "{{ messages[0]['content'] }}!"
    result = await house.manager.put("a", house.source("one", template))
    assert (result.changed, result.version.number) == (True, 2)
    assert house.catalog.resolve("a").chat_template == template
    texts = {name for name in house.files() if name.startswith("texts/")}
    assert texts == {f"texts/{result.version.text_digest}/chat_template.jinja"}
    await house.manager.rollback("a")
    assert house.catalog.resolve("a").chat_template is None
    await house.manager.delete("a", 5)
    await until(lambda: house.files() == set())


async def test_an_uploads_files_are_kept(house: ManagerHouse) -> None:
    result = await house.upload("a", "one")
    assert result.version.source == AdapterSource("upload", "x.zip")
    assert house.content("a") == "one"
    upload = house.state.upload(result.version.digest)
    assert (upload / "adapter_model.safetensors").read_text() == "one"
    await house.manager.delete("a", 5)
    await until(lambda: house.files() == set())
