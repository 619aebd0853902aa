"""Items of ``POST /v1/responses`` that stand for others: found by their ids in kept responses.

An item's id says which response made or took it, so that nothing has to be kept about items.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from .kept_picking import FoundItems

ITEM_REFERENCE = "item_reference"
MAX_RESPONSES = 8
"""That are fetched for one request; each brings the items of its whole conversation."""
MAX_BYTES = 16 << 20
"""Of JSON that is unpacked for one request's references, the conversations around them too."""

_ITEM_ID = re.compile(r"[a-z]{2,4}_([0-9a-f]{32})[01][0-9a-f]{4}")
_PLACES = {"output": 0, "input": 1}

Item = Mapping[str, Any]
FindItems = Callable[[str, Collection[str]], Awaitable[FoundItems | None]]
"""Of a kept response, by its id, the items of some ids; None where there is no such response."""


class BadReference(ValueError):  # noqa: N818 - the client's
    """The reference at ``index`` of the items can't be followed; ``code`` is for the client."""

    def __init__(self, index: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.code = code


def item_id(kind: str, response_id: str, place: Literal["output", "input"], index: int) -> str:
    """The id of an item of a response, the same wherever it is made."""
    return f"{kind}_{response_id.rpartition('_')[2]}{_PLACES[place]}{index:04x}"


def reference_of(item: object) -> str | None:
    """The id of what an item stands for, None for one that stands for itself.

    OpenAI's SDKs may leave ``type`` out.
    """
    if not isinstance(item, Mapping) or not item.keys() <= {"id", "type"}:
        return None
    name = item.get("id")
    is_one = item.get("type", ITEM_REFERENCE) in (ITEM_REFERENCE, None)
    return name if is_one and isinstance(name, str) else None


async def with_items(
    items: Sequence[object], history: Iterable[object], find: FindItems
) -> list[object]:
    """``items`` with what their references stand for; None: it is in the conversation before.

    ``history`` are the items of the responses before these. Raises BadReference, and what
    ``find`` does.
    """
    wanted = {index: name for index, item in enumerate(items) if (name := reference_of(item))}
    if not wanted:
        return list(items)
    there = _by_id(history)
    given = _by_id(item for index, item in enumerate(items) if index not in wanted)
    known = await _fetched(wanted, {**given, **there}, find)
    placed: list[object] = []
    for index, item in enumerate(items):
        name = wanted.get(index)
        if name is not None:
            item = None if name in there else known[name]
        placed.append(item)
        there |= _by_id([item])
    return placed


async def _fetched(
    wanted: Mapping[int, str], given: Mapping[str, Item], find: FindItems
) -> dict[str, Item]:
    """All that is wanted or given; the latest first: it may hold the others."""
    known, fetched, num_bytes = dict(given), set[str](), 0
    for index, name in reversed(list(wanted.items())):
        found = _ITEM_ID.fullmatch(name)
        response_id = f"resp_{found[1]}" if found else None
        if name in known or response_id is None or response_id in fetched:
            continue
        if len(fetched) == MAX_RESPONSES:
            most = f"the {MAX_RESPONSES} responses that one request may refer to"
            raise BadReference(index, f"is of none of {most}, counted from the last item on")
        fetched.add(response_id)
        kept = await find(response_id, set(wanted.values()) - known.keys())
        if kept is None:
            continue
        known |= kept.items
        num_bytes += kept.num_bytes
        if num_bytes > MAX_BYTES:
            most = f"{MAX_BYTES >> 20} MiB, the most that one request may refer to"
            raise BadReference(index, f"is of a conversation that with the others is over {most}")
    for index, name in wanted.items():
        if name not in known:
            raise BadReference(
                index,
                f"{name[:100]!r} is no item of a response that is kept; send the item itself, or "
                "go on from responses with store",
                "item_not_found",
            )
    return known


def _by_id(items: Iterable[object]) -> dict[str, Item]:
    return {
        item["id"]: item
        for item in items
        if isinstance(item, Mapping) and isinstance(item.get("id"), str)
    }
