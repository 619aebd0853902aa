"""Items by reference: only they are unpacked, and so many bytes of what they lie in are read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from branchline.gateway.fleet import kept_items
from branchline.gateway.fleet.kept_items import BadReference, item_id, with_items
from branchline.gateway.fleet.kept_limits import KeptLimits
from branchline.gateway.fleet.kept_picking import FoundItems, pick
from branchline.gateway.fleet.kept_responses import KeptResponse, pack, unpack_items


def kept(number: int, num_bytes: int = 0) -> KeptResponse:
    """With one output and one input, and so much text beside them."""
    name = f"resp_{number:032x}"
    said, asked = (
        {"id": item_id("msg", name, place, 0), "content": f"{place} {number}"}
        for place in ("output", "input")
    )
    filler = {"id": f"msg_{number}", "content": "x" * num_bytes}
    return KeptResponse({"id": name, "output": [said]}, [filler, asked])


class Holding:
    """What a store holds; notes what it was asked for."""

    def __init__(self, *held: KeptResponse) -> None:
        self._held = {one.id: msgspec.json.encode(one) for one in held}
        self.asked: list[tuple[str, set[str]]] = []

    async def find(self, response_id: str, names: Collection[str]) -> FoundItems | None:
        self.asked.append((response_id, set(names)))
        raw = self._held.get(response_id)
        return None if raw is None else pick(raw, names)


def reference(one: KeptResponse) -> dict[str, Any]:
    return {"id": one.response["output"][0]["id"]}


def test_only_what_is_wanted_is_unpacked() -> None:
    one = kept(1, 5000)
    wanted = one.response["output"][0]["id"]
    packed = pack(one, KeptLimits())
    assert packed is not None
    found = unpack_items(packed, {wanted, "msg_other"})
    assert found == FoundItems({wanted: one.response["output"][0]}, len(msgspec.json.encode(one)))
    found = unpack_items(packed, {one.items[1]["id"]})
    assert found is not None
    assert list(found.items.values()) == [one.items[1]]


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"items": [5], "response": {}}', b'{"items": []}'])
def test_what_is_no_kept_response_has_no_items(raw: bytes) -> None:
    assert pick(raw, {"msg_1"}) is None
    assert unpack_items(b"no zlib " + raw, {"msg_1"}) is None


def test_of_equal_ids_it_is_the_last_as_everywhere() -> None:
    first, last = ({"id": "msg_1", "content": text} for text in "ab")
    raw = msgspec.json.encode(KeptResponse({"id": "r", "output": [last]}, [first, {"x": 1}]))
    found = pick(raw, {"msg_1"})
    assert found is not None
    assert found.items == {"msg_1": last}


async def test_what_is_known_is_not_asked_for() -> None:
    one, two = kept(1), kept(2)
    holding = Holding(one, two)
    items = [reference(one), {**reference(one), "role": "user"}, reference(two)]
    placed = await with_items(items, (), holding.find)
    assert placed[2] == two.response["output"][0]
    assert holding.asked == [(two.id, {reference(two)["id"]})]


async def test_conversations_that_are_read_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_items, "MAX_BYTES", 3000)
    ones = [kept(number, 1000) for number in range(4)]
    assert len(msgspec.json.encode(ones[0])) < 1400
    holding = Holding(*ones)
    assert len(await with_items([reference(one) for one in ones[:2]], (), holding.find)) == 2
    holding.asked.clear()
    with pytest.raises(BadReference, match="MiB, the most") as told:
        await with_items([reference(one) for one in ones], (), holding.find)
    assert told.value.index == 1
    assert len(holding.asked) == 3, "nothing is read after that"
