"""The fleet's store without Redis: one truth, and a copy of it for each gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from branchline.gateway.store.documents import (
    Change,
    Conflict,
    Document,
    Guard,
    Item,
    Put,
    Removal,
    StoreDown,
)

Name = tuple[str, str]


class FakeRedis:
    """The documents that all gateways share."""

    def __init__(self) -> None:
        self.documents: dict[Name, Document] = {}
        self.revision = 0
        self.is_up = True

    def change(self, items: Sequence[Item]) -> None:
        if not self.is_up:
            raise StoreDown("away")
        for item in items:
            there = self.documents.get((item.kind, item.name))
            revision = there.revision if there else 0
            if item.expected not in (None, revision):
                raise Conflict(item.kind, item.name, revision)
        self.revision += 1
        for item in items:
            if item.verb == "put":
                document = Document(item.kind, item.name, self.revision, item.data)
                self.documents[item.kind, item.name] = document
            elif item.verb == "remove":
                self.documents.pop((item.kind, item.name), None)


class FakeStore:
    """One gateway's side: its own changes are here at once, others' after ``refresh``."""

    def __init__(self, redis: FakeRedis | None = None) -> None:
        self.redis = redis or FakeRedis()
        self._copy: dict[Name, Document] = {}
        self._listeners: list[Callable[[str, str], None]] = []

    def get(self, kind: str, name: str) -> Document | None:
        return self._copy.get((kind, name))

    def items(self, kind: str) -> Mapping[str, Document]:
        return {name: entry for (of, name), entry in self._copy.items() if of == kind}

    def subscribe(self, listener: Callable[[str, str], None]) -> None:
        self._listeners.append(listener)

    async def change(
        self, puts: Sequence[Put], removals: Sequence[Removal] = (), guards: Sequence[Guard] = ()
    ) -> int:
        items = Change(puts, removals, guards).items()
        self.redis.change(items)
        self._take((item.kind, item.name) for item in items if item.verb != "guard")
        return self.redis.revision

    async def refresh(self) -> None:
        if not self.redis.is_up:
            raise StoreDown("away")
        self._take({*self._copy, *self.redis.documents})

    def _take(self, names: Any) -> None:
        for kind, name in list(names):
            new = self.redis.documents.get((kind, name))
            if new == self._copy.get((kind, name)):
                continue
            if new is None:
                del self._copy[kind, name]
            else:
                self._copy[kind, name] = new
            for listener in self._listeners:
                listener(kind, name)
