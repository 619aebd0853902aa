"""What the tenant API answers; nothing in it is a secret but ``NewKey.key``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .records import KeyRecord, LimitFields, TenantRecord


class TenantEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant as it stands; ``revision`` is what ``If-Match`` takes."""

    name: str
    models: list[str] | dict[str, str] | None
    weight: float
    priority: int
    group: str | None
    limits: LimitFields
    disabled: bool
    created: float
    revision: int
    num_keys: int

    @classmethod
    def of(cls, record: TenantRecord, revision: int, num_keys: int) -> TenantEntry:
        """A record of a revision."""
        fields: dict[str, Any] = msgspec.structs.asdict(record.body)
        return cls(
            name=record.name,
            created=record.created,
            revision=revision,
            num_keys=num_keys,
            **fields,
        )


class TenantList(msgspec.Struct, frozen=True):
    """A page of them, by name."""

    tenants: Sequence[TenantEntry]
    has_more: bool
    last: str | None


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One key without its secret; times are Unix seconds."""

    id: str
    tenant: str
    ending: str
    created: float
    expires_at: float | None
    is_expired: bool

    @classmethod
    def of(cls, record: KeyRecord, now: float) -> KeyEntry:
        """A record as of ``now``."""
        return cls(
            id=record.id,
            tenant=record.tenant,
            ending=record.ending,
            created=record.created,
            expires_at=record.expires_at,
            is_expired=record.expires_at is not None and now >= record.expires_at,
        )


class NewKey(KeyEntry, frozen=True, kw_only=True):
    """A key that was made; ``key`` is shown this one time."""

    key: str


class KeyList(msgspec.Struct, frozen=True):
    """All keys of a tenant, oldest first."""

    tenant: str
    keys: Sequence[KeyEntry]


class TenantRemoval(msgspec.Struct, frozen=True):
    """A tenant that is gone, with so many keys."""

    name: str
    num_keys: int


class KeyRemoval(msgspec.Struct, frozen=True):
    """A key that opens no more."""

    tenant: str
    id: str
