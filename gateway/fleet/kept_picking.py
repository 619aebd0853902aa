"""Single items out of a kept response: the rest of its conversation is never unpacked whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

Item = dict[str, Any]


class FoundItems(msgspec.Struct, frozen=True):
    """Items by their ids, and the bytes of JSON of the response that they were found in."""

    items: dict[str, Item]
    num_bytes: int


class _Body(msgspec.Struct):
    output: list[msgspec.Raw] = []


class _Lying(msgspec.Struct):
    response: _Body
    items: list[msgspec.Raw]


class _Named(msgspec.Struct):
    id: Any = None


_LYING = msgspec.json.Decoder(_Lying)
_NAMED = msgspec.json.Decoder(_Named)


def pick(raw: bytes, names: Collection[str]) -> FoundItems | None:
    """The items of these ids in a kept response's JSON, of equal ids the last; None: it is none."""
    found: dict[str, Item] = {}
    try:
        kept = _LYING.decode(raw)
        for item in (*kept.items, *kept.response.output):
            name = _NAMED.decode(item).id
            if isinstance(name, str) and name in names:
                found[name] = msgspec.json.decode(item)
    except (msgspec.DecodeError, RecursionError):
        return None
    return FoundItems(found, len(raw))
