"""Records of adapters and aliases in the store: decoded once, changed by edits that are retried."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from ..errors import GatewayError
from ..store.documents import Conflict, Guard, Put, Removal, StoreDown
from ..store.store import Store
from .records import AdapterRecord, AliasRecord

ADAPTER, ALIAS = "adapter", "alias"
MAX_ATTEMPTS = 16
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses before a change is sent again to a store that has not answered."""

RecordT = TypeVar("RecordT", AdapterRecord, AliasRecord)


@dataclass(slots=True)
class Edit:
    """A change in the making."""

    puts: list[Put] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)


class RecordStore:
    """``on_change`` is called after a record of any gateway's has changed here."""

    def __init__(self, store: Store, on_change: Callable[[], None]) -> None:
        self._store = store
        self._tell = on_change
        self._records: dict[tuple[str, str], tuple[int, AdapterRecord | AliasRecord]] = {}
        store.subscribe(self._on_change)

    def adapter(self, name: str) -> AdapterRecord | None:
        """A name's record."""
        return self._read(ADAPTER, name, AdapterRecord)

    def alias(self, name: str) -> AliasRecord | None:
        """An alias's record."""
        return self._read(ALIAS, name, AliasRecord)

    def adapters(self) -> dict[str, AdapterRecord]:
        """All names."""
        return dict(self._all(ADAPTER, AdapterRecord))

    def aliases(self) -> dict[str, AliasRecord]:
        """All aliases."""
        return dict(self._all(ALIAS, AliasRecord))

    def revision(self, kind: str, name: str) -> int:
        """What a change of it must expect; 0 where there is none."""
        document = self._store.get(kind, name)
        return 0 if document is None else document.revision

    def put_of(self, kind: str, name: str, record: AdapterRecord | AliasRecord) -> Put:
        """A line of a change that puts a record in the place of the one that is here."""
        return kind, name, msgspec.json.encode(record), self.revision(kind, name)

    async def refresh(self) -> None:
        """Take in what other gateways have changed, if the store answers."""
        with contextlib.suppress(StoreDown):
            await self._store.refresh()

    async def commit(self, prepare: Callable[[bool], Edit | None]) -> None:
        """Have an edit made, prepared anew for as long as others are quicker; None: no need.

        It is told that it may have been made already: after a call that did not come back. So an
        edit has to say where it leads, not what it changes. Raises what ``prepare`` does, and
        GatewayError 503 where the store can't be written.
        """
        delays = list(RETRY_SECONDS)
        for _ in range(MAX_ATTEMPTS):
            edit = prepare(len(delays) < len(RETRY_SECONDS))
            if edit is None:
                return
            try:
                await self._store.change(edit.puts, edit.removals, edit.guards)
            except Conflict:
                await self.refresh()
            except StoreDown:
                if not delays:
                    raise _store_down() from None
                await asyncio.sleep(delays.pop(0))
                await self.refresh()
            else:
                return
        raise GatewayError(409, "Others change this all the time.", code="adapter_changed")

    def _read(self, kind: str, name: str, type_: type[RecordT]) -> RecordT | None:
        document = self._store.get(kind, name)
        if document is None:
            return None
        known = self._records.get((kind, name))
        if known is not None and known[0] == document.revision:
            assert isinstance(known[1], type_)
            return known[1]
        record = msgspec.json.decode(document.data, type=type_)
        self._records[kind, name] = (document.revision, record)
        return record

    def _all(self, kind: str, type_: type[RecordT]) -> Iterator[tuple[str, RecordT]]:
        for name in self._store.items(kind):
            if (record := self._read(kind, name, type_)) is not None:
                yield name, record

    def _on_change(self, kind: str, name: str) -> None:
        if kind in (ADAPTER, ALIAS):
            self._records.pop((kind, name), None)
            self._tell()


def _store_down() -> GatewayError:
    return GatewayError(
        503,
        "The fleet's store can't be written now; it is not known whether the change was made. "
        "Send it again.",
        code="store_down",
        headers={"retry-after": "1"},
    )
