"""The keys of each tenant, kept up to date with the store."""

from __future__ import annotations

from dataclasses import dataclass

from ..store.documents import Document
from ..store.store import Store
from .records import KeyRecord, TenantRecord, decode


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key's record and where the store has it."""

    document: Document
    record: KeyRecord


class KeyBook:
    """Every key that can be read, by the tenant it names."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owners: dict[str, str] = {}
        self._by_tenant: dict[str, dict[str, HeldKey]] = {}
        store.subscribe(self._update)
        for digest in store.items("key"):
            self._update("key", digest)

    def of_name(self, tenant: str) -> list[HeldKey]:
        """The keys that name this tenant, or an earlier one that was called so."""
        return list(self._by_tenant.get(tenant, {}).values())

    def of(self, tenant: TenantRecord) -> list[HeldKey]:
        """The keys that open for this tenant."""
        keys = self.of_name(tenant.name)
        return [key for key in keys if key.record.incarnation == tenant.incarnation]

    def _update(self, kind: str, digest: str) -> None:
        if kind != "key":
            return
        owner = self._owners.pop(digest, None)
        if owner is not None:
            del self._by_tenant[owner][digest]
            if not self._by_tenant[owner]:
                del self._by_tenant[owner]
        document = self._store.get("key", digest)
        record = decode(document, KeyRecord) if document else None
        if document is not None and record is not None:
            self._owners[digest] = record.tenant
            self._by_tenant.setdefault(record.tenant, {})[digest] = HeldKey(document, record)
