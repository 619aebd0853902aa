"""Who may come in, and as whom: tenants' keys, the fleet's secret and admin keys, as digests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..engine.types import DEFAULT_TENANT
from ..gateway.fleet.identity import (
    MAX_WEIGHT,
    MIN_WEIGHT,
    TENANT_NAME,
    TENANT_NAME_RULE,
    digest_key,
    matches,
    parse_weight,
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a request is charged to, and its share of the machine against others'.

    A gateway may add to the ``priority`` of its requests, and put it into a ``cache_group``, whose
    tenants share cached prefixes with each other and with nobody else.
    """

    name: str = DEFAULT_TENANT
    weight: float = 1.0
    priority: int = 0
    cache_group: str | None = None


@dataclass(frozen=True, slots=True)
class TenantKey:
    """An API key, as sha256, and the name of the tenant it belongs to."""

    digest: bytes = field(repr=False)
    tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What opens which door. No ``keys``: everyone is the tenant ``default``, unless ``is_closed``.

    ``is_closed``: nobody comes in without a key or the fleet's secret.
    ``weights`` holds only what differs from 1. Secrets are kept as sha256, 32 bytes each.
    """

    keys: tuple[TenantKey, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    fleet_secret: bytes | None = field(default=None, repr=False)
    admin_keys: tuple[bytes, ...] = field(default=(), repr=False)
    is_closed: bool = False

    @property
    def tenant_names(self) -> tuple[str, ...]:
        """Every configured tenant, in the order given."""
        return tuple(dict.fromkeys(key.tenant for key in self.keys)) or (DEFAULT_TENANT,)

    @property
    def asks_for_keys(self) -> bool:
        """Whether anything is told apart by who sends it."""
        return bool(self.keys or self.fleet_secret)

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name, with its configured weight or 1."""
        return Tenant(name, self.weights.get(name, 1.0))

    def tenant_of(self, key: bytes) -> Tenant | None:
        """Whose key this is; compares with all of them in constant time."""
        found = matches(key, [entry.digest for entry in self.keys])
        return None if found is None else self.tenant(self.keys[found].tenant)


def parse_access(options: Mapping[str, Any]) -> Access:
    """Access from the command line's options and the environment.

    Raises ValueError that names the flag and never shows a secret. ``BRANCHLINE_API_KEY`` and
    ``BRANCHLINE_ADMIN_KEY`` (comma-separated) come beside the flags, and
    ``BRANCHLINE_FLEET_SECRET`` stands in for its flag.
    """
    plain = _secrets("--api-key", options["api_key"], "BRANCHLINE_API_KEY")
    keys = _tenant_keys([_parse_tenant(text) for text in options["tenant"]], plain)
    names = dict.fromkeys(key.tenant for key in keys) or {DEFAULT_TENANT: None}
    secret = read_fleet_secret(options["fleet_secret"])
    admin = _secrets("--admin-key", options["admin_key"], "BRANCHLINE_ADMIN_KEY")
    access = Access(
        keys=keys,
        weights=MappingProxyType(_parse_weights(options["tenant_weight"], names)),
        fleet_secret=digest_key(secret) if secret else None,
        admin_keys=tuple(map(digest_key, admin)),
    )
    _check_apart(access)
    return access


def read_fleet_secret(given: str | None) -> str | None:
    """The fleet's secret as it was given, or from the environment; raises ValueError if empty."""
    if given is not None and not given.strip():
        raise ValueError("--fleet-secret: must not be empty")
    return (given or os.environ.get("BRANCHLINE_FLEET_SECRET", "")).strip() or None


def _secrets(flag: str, given: Iterable[str], variable: str) -> list[str]:
    """Secrets of a flag, then of a variable, each once; an empty flag is no secret but a slip."""
    stripped = [secret.strip() for secret in given]
    if not all(stripped):
        raise ValueError(f"{flag}: must not be empty")
    from_environment = [part.strip() for part in os.environ.get(variable, "").split(",")]
    return list(dict.fromkeys([*stripped, *filter(None, from_environment)]))


def _parse_tenant(text: str) -> tuple[str, str]:
    """``NAME=KEY``; what is wrong is said without the text, which may hold a key."""
    name, equals, key = (part.strip() for part in text.partition("="))
    if not (equals and name and key):
        raise ValueError("--tenant: must be NAME=KEY (what was given is not shown: it is a secret)")
    if not TENANT_NAME.fullmatch(name):
        raise ValueError(f"--tenant: a NAME must be {TENANT_NAME_RULE}")
    return name, key


def _tenant_keys(named: Iterable[tuple[str, str]], plain: Iterable[str]) -> tuple[TenantKey, ...]:
    """Keys of named tenants, then plain ones, each a tenant ``key-N`` of its own."""
    keys: dict[bytes, TenantKey] = {}
    taken: set[str] = set()
    for name, key in named:
        entry = TenantKey(digest_key(key), name)
        if keys.setdefault(entry.digest, entry) != entry:
            other = keys[entry.digest].tenant
            raise ValueError(f"--tenant: tenants {other!r} and {name!r} have the same key")
        taken.add(name)
    for number, key in enumerate(plain, start=1):
        entry = TenantKey(digest_key(key), f"key-{number}")
        if entry.tenant in taken:
            raise ValueError(
                f"--tenant: {entry.tenant!r} is the name of --api-key number {number} already"
            )
        if entry.digest in keys:
            owner = keys[entry.digest].tenant
            raise ValueError(f"--api-key: number {number} is also a key of tenant {owner!r}")
        keys[entry.digest] = entry
    return tuple(keys.values())


def _parse_weights(texts: Iterable[str], names: Iterable[str]) -> dict[str, float]:
    known, weights = list(names), dict[str, float]()
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (equals and name):
            raise ValueError("--tenant-weight: must be NAME=WEIGHT")
        if name not in known:
            shown = ", ".join(known[:20])
            raise ValueError(f"--tenant-weight: there is no tenant {name!r}; there are: {shown}")
        if name in weights:
            raise ValueError(f"--tenant-weight: {name!r} has two weights")
        weight = parse_weight(value)
        if weight is None:
            raise ValueError(
                f"--tenant-weight: {name!r} must have a number from {MIN_WEIGHT} to {MAX_WEIGHT:g}"
            )
        weights[name] = weight
    return weights


def _check_apart(access: Access) -> None:
    """A secret opens one door only."""
    doors = {
        "--tenant or --api-key": [key.digest for key in access.keys],
        "--fleet-secret": [access.fleet_secret] if access.fleet_secret else [],
        "--admin-key": list(access.admin_keys),
    }
    seen: dict[bytes, str] = {}
    for flag, digests in doors.items():
        for digest in digests:
            if seen.setdefault(digest, flag) != flag:
                raise ValueError(f"{flag}: the same secret is given as {seen[digest]}")
