"""From a request's headers to its tenant; all of it from this gateway's copy of the store."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..errors import GatewayError
from ..fleet.identity import bearer, digest_key
from ..store.second_look import SecondLook
from ..store.store import Store
from ..types import Caller
from .keys import KEY_LENGTH, MAX_KEY_BYTES, PREFIX
from .records import KeyRecord, TenantRecord, decode

ANONYMOUS = "default"
"""Who comes without a key, where that is allowed; a tenant of that name sets the terms."""

_CHALLENGE = {"www-authenticate": "Bearer"}


class TenantDirectory:
    """Tells callers apart; decoded records are kept until the store changes them."""

    def __init__(
        self,
        store: Store,
        *,
        allow_anonymous: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._allow_anonymous = allow_anonymous
        self._clock = clock
        self._records: dict[str, TenantRecord | None] = {}
        self._callers: dict[str, Caller] = {}
        self._keys: dict[str, KeyRecord | None] = {}
        self._priorities: tuple[int, ...] | None = None
        self._second_look = SecondLook(store)
        store.subscribe(self._forget)

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sends this: ``Authorization: Bearer KEY``, else ``x-api-key``.

        Raises GatewayError 401. Where anonymous callers are allowed, a key that can't be one of
        ours (clients may insist on sending some) is not looked at.
        """
        key = _key_of(headers)
        if key is not None:
            record = self._key_record(key)
            if record is not None:
                return self._owner(record)
            if not self._allow_anonymous or key.startswith(PREFIX.encode()):
                raise _unauthorized("This API key is not valid")
        if not self._allow_anonymous:
            raise _unauthorized("A valid API key is needed")
        return self._caller(ANONYMOUS)

    async def identify(self, headers: Mapping[str, str]) -> Caller:
        """As ``caller``; a key in the form of ours that is refused may have been made just now."""
        try:
            return self.caller(headers)
        except GatewayError:
            if not _has_our_form(_key_of(headers)) or not await self.look_again():
                raise
        return self.caller(headers)

    async def look_again(self) -> bool:
        """Learn what other gateways changed up to this call, before a name is called unknown.

        Some 0.1 s at most while Redis answers; False, mostly at once, while it does not.
        """
        return await self._second_look.look()

    def record(self, tenant: str) -> TenantRecord | None:
        """A tenant's terms; None for one that is not in the store."""
        try:
            return self._records[tenant]
        except KeyError:
            document = self._store.get("tenant", tenant)
            if document is None:  # not kept: strangers' names are without number
                return None
            record = decode(document, TenantRecord)
            self._records[tenant] = record
            return record

    @property
    def priorities(self) -> tuple[int, ...]:
        """All priorities that tenants have, lowest number (the last to be shed) first."""
        if self._priorities is None:
            records = map(self.record, list(self._store.items("tenant")))
            self._priorities = tuple(sorted({record.priority for record in records if record}))
        return self._priorities

    def _key_record(self, key: bytes) -> KeyRecord | None:
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return None
        digest = digest_key(key).hex()
        document = self._store.get("key", digest)
        if document is None or not hmac.compare_digest(document.name, digest):
            return None
        try:
            return self._keys[digest]
        except KeyError:
            self._keys[digest] = decode(document, KeyRecord)
            return self._keys[digest]

    def _owner(self, key: KeyRecord) -> Caller:
        tenant = self.record(key.tenant)
        if tenant is None or tenant.incarnation != key.incarnation:
            raise _unauthorized("This API key is not valid")
        if key.expires_at is not None and self._clock() >= key.expires_at:
            raise _unauthorized("This API key has expired")
        return self._caller(key.tenant)

    def _caller(self, name: str) -> Caller:
        known = self._callers.get(name)
        if known is not None:
            return known
        record = self.record(name)
        if record is None:
            if self._store.get("tenant", name) is not None:  # it may be limited: not let in
                raise _unauthorized("This tenant can't be read", "an admin can mend it")
            return Caller(tenant=name)
        if record.disabled:
            raise _unauthorized("This tenant is disabled", "an admin can enable it")
        models = record.model_map
        caller = Caller(
            tenant=name,
            weight=record.weight,
            priority=record.priority,
            cache_group=record.group,
            models=None if models is None else MappingProxyType(dict(models)),
        )
        self._callers[name] = caller
        return caller

    def _forget(self, kind: str, name: str) -> None:
        if kind == "tenant":
            self._records.pop(name, None)
            self._callers.pop(name, None)
            self._priorities = None
        elif kind == "key":
            self._keys.pop(name, None)


def _key_of(headers: Mapping[str, str]) -> bytes | None:
    """The key in the bytes that were sent; None where there is none."""
    try:
        key = bearer(headers)
        if key is None and "x-api-key" in headers:
            key = headers["x-api-key"].strip().encode("latin-1")
    except UnicodeEncodeError:  # nothing that came over a wire
        return b"?"
    return key or None


def _has_our_form(key: bytes | None) -> bool:
    return key is not None and len(key) == KEY_LENGTH and key.startswith(PREFIX.encode())


def _unauthorized(
    problem: str, advice: str = "send the header 'Authorization: Bearer KEY'"
) -> GatewayError:
    return GatewayError(
        401,
        f"{problem}: {advice}.",
        code="invalid_api_key",
        headers=_CHALLENGE,
    )
