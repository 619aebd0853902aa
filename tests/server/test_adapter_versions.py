"""Roll backs and aliases: older versions from what is kept of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from asgi_client import until
from manager_house import ManagerHouse, manager_house, refused

from branchline.lora.errors import AdapterError
from branchline.server.aliases import AliasTarget
from branchline.server.errors import ApiError
from branchline.server.text.tokenizer import Tokenizer


@pytest.fixture
async def house(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[ManagerHouse]:
    async with manager_house(tmp_path, tokenizer, max_older=2) as house:
        yield house


async def test_a_roll_back_is_one_call(house: ManagerHouse) -> None:
    await house.put("a", "one")
    await house.put("a", "two")
    await until(lambda: house.loaded == {"two"})
    result = await house.manager.rollback("a")
    assert (result.changed, result.version.number) == (True, 1)
    assert house.content("a") == "one"
    await until(lambda: house.loaded == {"one"})
    assert house.loader.num_formatted == 2, "from its file"
    again = await house.manager.rollback("a", 1)
    assert not again.changed
    assert (await house.manager.rollback("a", 2)).version.number == 2
    assert (await house.manager.rollback("a")).version.number == 1
    message = await refused("no_earlier_version", house.manager.rollback("a"))
    assert "'a'" in message
    assert "kept: 1, 2" in await refused("version_not_found", house.manager.rollback("a", 9), 404)


async def test_a_file_that_is_gone_is_made_again(house: ManagerHouse) -> None:
    await house.put("a", "one")
    await house.upload("a", "two")
    await house.put("a", "three")
    await until(lambda: house.loaded == {"three"})
    for version in house.manager.versions("a")[:2]:
        house.state.formatted(version.digest).unlink()
    assert (await house.manager.rollback("a", 2)).version.number == 2
    assert house.content("a") == "two", "from the upload that was kept"
    assert (await house.manager.rollback("a", 1)).version.number == 1
    assert house.content("a") == "one", "from its directory"


async def test_a_source_that_has_changed_is_no_version_any_more(house: ManagerHouse) -> None:
    result = await house.put("a", "one")
    await house.put("a", "two")
    await until(lambda: house.loaded == {"two"})
    house.state.formatted(result.version.digest).unlink()
    Path(result.version.source.location, "adapter_model.safetensors").write_text("other")
    with pytest.raises(AdapterError, match="has other bytes by now"):
        await house.manager.rollback("a")
    assert house.content("a") == "two"
    assert "other bytes" in str((await house.manager.get("a")).error)


async def test_an_alias_moves_and_goes_back(house: ManagerHouse) -> None:
    await house.put("a", "one")
    await house.put("b", "two")
    state = await house.manager.put_alias("live", [AliasTarget("a")])
    assert (state.targets, state.previous) == ((AliasTarget("a"),), None)
    await refused("no_earlier_version", house.manager.rollback_alias("live"))
    await house.manager.put_alias("live", [AliasTarget("b")])
    assert house.content("live") == "two"
    state = await house.manager.put_alias("live", [AliasTarget("b")])
    assert state.previous == (AliasTarget("a"),), "the same again is no move"
    await house.manager.rollback_alias("live")
    assert house.content("live") == "one"
    assert (await house.manager.get("a")).aliases == ("live",)
    assert [state.name for state in house.manager.list_aliases()] == ["live"]
    message = await refused("adapter_in_use", house.manager.delete("a", 0))
    assert "'live'" in message
    await house.manager.delete("b", 5)
    await refused("no_earlier_version", house.manager.rollback_alias("live"))
    await house.manager.delete_alias("live")
    await refused("alias_not_found", house.manager.delete_alias("live"), 404)
    await refused("alias_not_found", house.manager.rollback_alias("live"), 404)


async def test_an_alias_does_not_go_back_to_a_name_that_came_anew(house: ManagerHouse) -> None:
    await house.put("a", "one")
    await house.put("b", "two")
    await house.manager.put_alias("live", [AliasTarget("a", 1)])
    await house.manager.put_alias("live", [AliasTarget("b")])
    await house.manager.delete("a", 5)
    await house.put("a", "three")
    await refused("no_earlier_version", house.manager.rollback_alias("live"))
    assert house.state.read().aliases["live"].previous is None
    assert house.content("live") == "two"


async def test_a_canary_holds_its_versions(house: ManagerHouse) -> None:
    for content in ("one", "two"):
        await house.put("a", content)
    await until(lambda: house.loaded == {"two"})
    split = [AliasTarget("a", 1, 90), AliasTarget("a", 2, 10)]
    await house.manager.put_alias("canary", split)
    assert house.loaded == {"one", "two"}, "both can be asked for"
    assert {house.content("canary", f"k{n}") for n in range(60)} == {"one", "two"}
    for content in ("three", "four", "five", "six"):
        await house.put("a", content)
    assert {version.number for version in house.manager.versions("a")} == {1, 2, 4, 5, 6}
    assert {house.content("canary", f"k{n}") for n in range(60)} == {"one", "two"}
    await house.manager.delete_alias("canary")
    await until(lambda: house.loaded == {"six"})
    await house.put("a", "seven")
    await until(lambda: house.contents() == {"five", "six", "seven"})


async def test_aliases_of_what_is_not_there_are_refused(house: ManagerHouse) -> None:
    await house.put("a", "one")
    put = house.manager.put_alias
    await refused("adapter_not_found", put("x", [AliasTarget("b")]), 404)
    await refused("version_not_found", put("x", [AliasTarget("a", 2)]), 404)
    await refused("adapter_not_found", put("x", [AliasTarget("base")]), 404)
    with pytest.raises(ApiError, match="sum to 50"):
        await put("x", [AliasTarget("a", None, 50)])
    await put("live", [AliasTarget("a")])
    await refused("adapter_not_found", put("x", [AliasTarget("live")]), 404)
