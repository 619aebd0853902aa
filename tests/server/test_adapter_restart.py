"""What a server finds again: after a stop, a kill at any moment, with another base model."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgi_client import until
from manager_house import ManagerHouse, manager_house, write_adapter

from branchline.engine.errors import EngineDeadError
from branchline.server.adapters import intake as adapter_intake
from branchline.server.adapters import revival as adapter_revival
from branchline.server.adapters import state as adapter_state
from branchline.server.adapters.registry import Registry
from branchline.server.adapters.sources import AdapterSource
from branchline.server.adapters.start import (
    AdapterStartError,
    check_names,
    start_adapters,
)
from branchline.server.adapters.state import StateDirectory
from branchline.server.aliases import AliasTarget
from branchline.server.catalog import Catalog
from branchline.server.errors import ApiError
from branchline.server.text.tokenizer import Tokenizer

TEMPLATE = "{{ messages[0]['content'] }}!"


async def fill(house: ManagerHouse) -> None:
    """Two adapters with versions, one of them with a template, a pin and a canary."""
    await house.put("a", "one")
    await house.put("a", "two")
    await house.manager.put("b", house.source("three", TEMPLATE), pin="device")
    await house.upload("c", "four")
    await house.manager.put_alias("canary", [AliasTarget("a", 1, 50), AliasTarget("b", None, 50)])
    await house.manager.put_alias("live", [AliasTarget("a")])
    await house.manager.put_alias("live", [AliasTarget("c")])


async def test_all_is_back_after_a_restart(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
        before = house.state.read()
    async with manager_house(tmp_path, tokenizer) as house:
        assert house.failures == {}
        assert house.state.read() == before
        assert house.loader.num_formatted == 0, "from the files that were kept"
        assert [house.content(name) for name in ("a", "b", "c", "live")] == [
            *("two", "three", "four", "four")
        ]
        assert {house.content("canary", f"k{n}") for n in range(50)} == {"one", "three"}
        assert house.catalog.resolve("b").chat_template == TEMPLATE
        state = await house.manager.get("b")
        assert state.report is not None
        assert (state.pin, state.report.pin, state.report.tier) == ("device", "device", "device")
        assert [model.name for model in house.catalog.models()] == [
            *("base", "a", "b", "c", "canary", "live")
        ]
        await house.manager.rollback_alias("live")
        assert house.content("live") == "two"
        assert (await house.put("a", "five")).version.number == 3


async def test_another_dtype_formats_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
    async with manager_house(tmp_path, tokenizer, dtype="bfloat16") as house:
        assert house.failures == {}
        assert house.loader.num_formatted == 4, "each version that is served"
        assert [house.content(name) for name in ("a", "b", "c")] == ["two", "three", "four"]
        files = [path.read_text() for path in house.state.adapters.iterdir()]
        assert all(text.startswith("bfloat16\n") for text in files)
    async with manager_house(tmp_path, tokenizer, dtype="bfloat16") as house:
        assert house.loader.num_formatted == 0


async def test_what_cannot_be_had_back_fails_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
        shutil.rmtree(house.root / "sources" / "two")
        shutil.rmtree(house.state.upload(house.catalog.resolve("c").digest or ""))
    async with manager_house(tmp_path, tokenizer, dtype="bfloat16") as house:
        assert house.failures.keys() == {"a", "c"}
        assert "sources/two is not a directory" in house.failures["a"]
        assert "uploaded again" in house.failures["c"]
        assert house.content("b") == "three"
        with pytest.raises(ApiError, match="can't be served now") as caught:
            house.catalog.resolve("a")
        assert caught.value.status == 404
        assert str(tmp_path) not in caught.value.message, "paths are no client's business"
        state = await house.manager.get("a")
        assert (state.report, state.error) == (None, house.failures["a"])
        assert [s.name for s in await house.manager.list()] == ["a", "b", "c"]
        result = await house.put("a", "two")
        assert (result.changed, result.version.number) == (True, 2), "the same bytes heal it"
        assert house.content("a") == "two"
        await house.manager.delete_alias("live")
        await house.manager.delete("c", 5)
    async with manager_house(tmp_path, tokenizer, dtype="bfloat16") as house:
        assert house.failures == {}
        assert house.content("a") == "two"


async def test_a_signature_is_shown_to_nobody(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = AdapterSource("http", "http://files/a.zip?X-Amz-Signature=secret")
    content = "one"

    async def fetch(source: AdapterSource, policy: object, work: Path) -> Path:
        return write_adapter(work / "adapter", content)

    monkeypatch.setattr(adapter_intake, "fetch", fetch)
    async with manager_house(tmp_path, tokenizer) as house:
        result = await house.manager.put("a", source)
        house.state.formatted(result.version.digest).unlink()
    content = "other"
    async with manager_house(tmp_path, tokenizer) as house:
        assert "http://files/a.zip has other bytes" in house.failures["a"]
        error = (await house.manager.get("a")).error
        with pytest.raises(ApiError) as caught:
            house.catalog.resolve("a")
        for said in (house.failures["a"], str(error), caught.value.message):
            assert "secret" not in said


async def test_what_puts_left_goes_also_when_there_are_no_adapters(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        (house.state.adapters / "left.adapter").write_text("left")
        write_adapter(house.state.new_work(), "left")
        assert house.files() != set()
        await start(house)
        assert house.files() == set()


async def test_text_files_that_changed_fail_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
        [file] = (tmp_path / "state" / "texts").glob("*/chat_template.jinja")
        file.write_text("{{ 'another' }}")
    async with manager_house(tmp_path, tokenizer) as house:
        assert house.failures.keys() == {"b"}
        assert "have been changed" in house.failures["b"]


async def test_lost_text_files_fail_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
        shutil.rmtree(tmp_path / "state" / "texts")
    async with manager_house(tmp_path, tokenizer) as house:
        assert house.failures.keys() == {"b"}
        assert house.content("a") == "two"


async def test_an_engine_that_dies_meanwhile_stops_the_start(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
        registry = house.state.read()
    async with manager_house(tmp_path / "other", tokenizer) as other:
        other.engine.die()
        with pytest.raises(EngineDeadError):
            await other.manager.restore(registry)


async def _images_of(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch, folder: Path, change: Any
) -> int:
    """Copies of the state directory before each step that changes files; how many there are."""
    images, lock = 0, threading.Lock()

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal images
            with lock:
                shutil.copytree(house.state.path, folder / str(images) / "state")
                images += 1
                return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, before(getattr(os, name)))
        await change()
        await until(lambda: not list((house.state.path / "work").iterdir()))
    assert adapter_state.os is adapter_revival.os is os
    return images


@pytest.mark.parametrize("verb", ["put", "upload", "replace", "rollback", "delete", "alias"])
async def test_a_kill_at_any_moment_leaves_a_state_that_starts(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async with manager_house(tmp_path, tokenizer, max_older=1) as house:
        await fill(house)
        changes: dict[str, Callable[[], Any]] = {
            "put": lambda: house.manager.put("new", house.source("new", TEMPLATE)),
            "upload": lambda: house.upload("c", "new"),
            "replace": lambda: house.put("b", "new"),
            "rollback": lambda: house.manager.rollback("a"),
            "delete": lambda: house.manager.delete_alias("live"),
            "alias": lambda: house.manager.put_alias("new", [AliasTarget("a", 1)]),
        }
        before = house.state.read()
        num_images = await _images_of(house, monkeypatch, tmp_path, changes[verb])
        after = house.state.read()
    assert num_images >= 3
    shutil.rmtree(tmp_path / "state")
    seen: list[Registry] = []
    for number in range(num_images):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "sources", root / "sources")
        async with manager_house(root, tokenizer) as house:
            assert house.failures == {}
            seen.append(house.state.read())
            assert house.loader.num_formatted == 0
            assert list((house.state.path / "work").iterdir()) == []
            kept = {v.digest for v in seen[-1].all_versions()}
            assert {path.stem for path in house.state.adapters.iterdir()} == kept
            assert house.content("a") in ("one", "two")
    assert all(registry in (before, after) for registry in seen)
    assert seen == sorted(seen, key=lambda registry: registry == after), "once, and for good"


# -- the command line ----------------------------------------------------------------------------


def named(house: ManagerHouse, **contents: str) -> list[tuple[str, AdapterSource]]:
    return [(name, house.source(content)) for name, content in contents.items()]


async def start(house: ManagerHouse, **contents: str) -> list[str]:
    said: list[str] = []
    named_ = named(house, **contents)
    await start_adapters(house.manager, house.state.read(), named_, said.append)
    return said


async def test_adapters_of_the_command_line_come_in_their_order(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        contents = {f"name{n}": f"content{n}" for n in range(30)}
        said = await start(house, **contents)
        assert house.catalog.adapter_names == list(contents)
        assert all(house.content(name) == content for name, content in contents.items())
        assert len(said) == 20


async def test_known_bytes_leave_the_current_version(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await start(house, a="one")
        await house.put("a", "two")
    async with manager_house(tmp_path, tokenizer) as house:
        await start(house, a="one")
        assert house.content("a") == "two", "what an admin put since then"
        assert house.loader.num_formatted == 0
        await start(house, a="three")
        assert house.content("a") == "three"
        assert [version.number for version in house.manager.versions("a")] == [1, 2, 3]


async def test_known_bytes_of_a_name_that_fails_heal_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        result = await house.upload("a", "one")
        shutil.rmtree(house.state.upload(result.version.digest))
        house.state.formatted(result.version.digest).unlink()
    async with manager_house(tmp_path, tokenizer) as house:
        assert house.failures.keys() == {"a"}
        await start(house, a="one")
        assert house.content("a") == "one"
        assert [version.number for version in house.manager.versions("a")] == [1]


async def test_a_bad_adapter_of_the_command_line_stops_the_start(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        with pytest.raises(AdapterStartError, match=r"adapter b: adapter_model\.safetensors: is"):
            await start(house, a="one", b="bad", c="three")
        await until(lambda: not list((house.state.path / "work").iterdir()))


async def test_what_failed_is_said(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        for number in range(25):
            await house.put(f"a{number}", f"content{number}")
        registry = house.state.read()
    shutil.rmtree(tmp_path / "sources")
    async with manager_house(tmp_path / "none", tokenizer) as house:
        said: list[str] = []
        await start_adapters(house.manager, registry, [], said.append)
        assert said[0] == "bringing back adapters: 25"
        assert said[1].startswith("adapter a0 can't be had back: source: ")
        assert said[-1] == "and 5 more"
        assert len(said) == 22


async def test_the_base_models_name_must_not_hide_an_adapter(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with manager_house(tmp_path, tokenizer) as house:
        await fill(house)
        registry = house.state.read()
    for name in ("a", "live"):
        with pytest.raises(AdapterStartError, match="--served-model-name"):
            check_names(registry, Catalog("/models/base", ["base", name]))
    check_names(registry, Catalog("/models/base", ["base"]))


def test_a_state_directory_is_free_again_after_a_kill(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        StateDirectory(tmp_path)
        os._exit(9)
    os.waitpid(child, 0)
    StateDirectory(tmp_path).close()
