"""The verbs on tenants and keys: each one change of the store, whole or not at all."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from ..errors import GatewayError, bad_field
from ..fleet.identity import digest_key
from ..store.documents import Conflict, Document, Put, StoreDown
from ..store.store import Store
from .entries import KeyEntry, NewKey, TenantEntry
from .key_book import HeldKey, KeyBook
from .keys import draw_key, ending_of, id_of
from .records import (
    MAX_KEYS,
    NAME_RULE,
    KeyRecord,
    PutTenant,
    TenantRecord,
    check_models,
    decode,
    is_name,
)

T = TypeVar("T")

_ATTEMPTS = 5
_LOOKS = 4
_LOOK_SECONDS = 0.1


class Tenants:
    """Reads from this gateway's copy; changes begin with a look at Redis, and raise StoreDown."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._keys = KeyBook(store)
        self._clock = clock

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(self._store.items("tenant"))

    def entry(self, name: str) -> TenantEntry:
        """One tenant; raises GatewayError 404."""
        document, record = self._tenant(name)
        return TenantEntry.of(record, document.revision, len(self._keys.of(record)))

    def keys(self, name: str) -> list[KeyEntry]:
        """A tenant's keys, oldest first; raises GatewayError 404."""
        now = self._clock()
        held = self._keys.of(self._tenant(name)[1])
        entries = [KeyEntry.of(key.record, now) for key in held]
        return sorted(entries, key=lambda entry: (entry.created, entry.id))

    async def put(
        self, name: str, body: PutTenant, expected: int | None
    ) -> tuple[TenantEntry, bool]:
        """Make a tenant or replace its terms, and say whether it is new; keys stay.

        The last of several wins, unless it expects a revision (0: that there is none): then
        GatewayError 409 for another one. Raises GatewayError 400.
        """
        if not is_name(name):
            raise bad_field("name", f"must be {NAME_RULE}")
        if problem := check_models(body.models):
            raise bad_field("models", problem)

        async def attempt() -> tuple[TenantEntry, bool]:
            there = self._store.get("tenant", name)
            if expected is not None and expected != (there.revision if there else 0):
                raise _changed(name)
            record = self._record(name, body, there)
            put = _put("tenant", name, record, there.revision if there else 0)
            revision = await self._store.change([put])
            return TenantEntry.of(record, revision, len(self._keys.of(record))), there is None

        return await self._repeated(attempt)

    async def delete(self, name: str, expected: int | None) -> int:
        """Remove a tenant with its keys, and say how many; what runs ends as it would.

        Raises GatewayError 404, and 409 for another revision than the expected one.
        """

        async def attempt() -> int:
            document, _ = self._tenant(name)
            if expected is not None and expected != document.revision:
                raise _changed(name)
            keys = self._keys.of_name(name)
            removals = [("key", key.document.name) for key in keys]
            await self._store.change([], [("tenant", name, document.revision), *removals])
            return len(keys)

        return await self._repeated(attempt)

    async def create_key(self, name: str, expires_at: float | None) -> NewKey:
        """A new key; raises GatewayError 404, and 409 when there are too many."""
        self._check_end(expires_at)

        async def attempt() -> NewKey:
            document, record = self._tenant(name)
            if len(self._keys.of(record)) >= MAX_KEYS:
                raise GatewayError(
                    409,
                    f"{name!r} has {MAX_KEYS} keys, the most: delete some",
                    code="too_many_keys",
                )
            new, put = self._drawn(record, expires_at)
            await self._store.change([put], guards=[("tenant", name, document.revision)])
            return new

        return await self._repeated(attempt)

    async def rotate(
        self, name: str, key_id: str, grace_seconds: float, expires_at: float | None
    ) -> NewKey:
        """A new key in place of an old one, which still opens for ``grace_seconds``.

        Raises GatewayError 404.
        """
        self._check_end(expires_at)

        async def attempt() -> NewKey:
            document, record = self._tenant(name)
            old = self._key(record, key_id)
            new, put = self._drawn(record, expires_at)
            puts, removals = [put], []
            if grace_seconds > 0:
                end = self._clock() + grace_seconds
                end = min(end, old.record.expires_at or end)
                ending = msgspec.structs.replace(old.record, expires_at=end)
                puts.append(_put("key", old.document.name, ending, old.document.revision))
            else:
                removals.append(("key", old.document.name, old.document.revision))
            guards = [("tenant", name, document.revision)]
            await self._store.change(puts, removals, guards)
            return new

        return await self._repeated(attempt)

    async def revoke(self, name: str, key_id: str) -> None:
        """Remove a key; raises GatewayError 404."""

        async def attempt() -> None:
            held = self._key(self._tenant(name)[1], key_id)
            await self._store.change([], [("key", held.document.name)])

        await self._repeated(attempt)

    async def _repeated(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Look at Redis, try; and again if someone else changed the same meanwhile."""
        for _ in range(_ATTEMPTS):
            await self._refresh()
            try:
                return await attempt()
            except Conflict:
                continue
        raise GatewayError(
            409, "Others change the same again and again: try later", code="revision_conflict"
        )

    async def _refresh(self) -> None:
        """Look at Redis; a breaker that is open for a moment is no reason to refuse an admin."""
        for _ in range(_LOOKS - 1):
            try:
                return await self._store.refresh()
            except StoreDown:
                await asyncio.sleep(_LOOK_SECONDS)
        return await self._store.refresh()

    def _tenant(self, name: str) -> tuple[Document, TenantRecord]:
        document = self._store.get("tenant", name)
        if document is None:
            raise GatewayError(
                404, f"There is no tenant {name[:128]!r}.", param="name", code="tenant_not_found"
            )
        record = decode(document, TenantRecord)
        if record is None:
            raise GatewayError(500, f"{name!r} can't be read; put it anew.", code="unreadable")
        return document, record

    def _record(self, name: str, body: PutTenant, there: Document | None) -> TenantRecord:
        old = decode(there, TenantRecord) if there else None
        return make_record(name, body, old, self._clock())

    def _drawn(self, tenant: TenantRecord, expires_at: float | None) -> tuple[NewKey, Put]:
        key = draw_key()
        digest = digest_key(key)
        record = KeyRecord(
            id=id_of(digest),
            tenant=tenant.name,
            incarnation=tenant.incarnation,
            created=self._clock(),
            ending=ending_of(key),
            expires_at=expires_at,
        )
        entry = msgspec.structs.asdict(KeyEntry.of(record, self._clock()))
        return NewKey(key=key, **entry), _put("key", digest.hex(), record, 0)

    def _check_end(self, expires_at: float | None) -> None:
        if expires_at is not None and expires_at <= self._clock():
            raise bad_field("expires_at", "is over already; it is in Unix seconds")

    def _key(self, tenant: TenantRecord, key_id: str) -> HeldKey:
        for held in self._keys.of(tenant):
            if held.record.id == key_id:
                return held
        raise GatewayError(
            404,
            f"{tenant.name!r} has no key with this id.",  # not shown: it may be a key
            param="key_id",
            code="key_not_found",
        )


def make_record(name: str, body: PutTenant, old: TenantRecord | None, now: float) -> TenantRecord:
    """The terms of ``body`` for a new tenant, or for one that is there."""
    return TenantRecord(
        name=name,
        incarnation=old.incarnation if old else secrets.token_hex(8),
        created=old.created if old else now,
        models=body.models,
        weight=body.weight,
        priority=body.priority,
        group=body.group,
        limits=body.limits.limits(),
        disabled=body.disabled,
    )


def _put(kind: str, name: str, record: msgspec.Struct, revision: int) -> Put:
    return kind, name, msgspec.json.encode(record), revision


def _changed(name: str) -> GatewayError:
    return GatewayError(
        409,
        f"{name!r} has another revision by now: read it again",
        param="if-match",
        code="revision_conflict",
    )
