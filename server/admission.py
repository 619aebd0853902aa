"""From a request's headers to who sends it; the only reader of keys and fleet headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from starlette.datastructures import Headers

from ..engine.types import DEFAULT_TENANT
from ..gateway.fleet.headers import (
    CACHE_GROUP,
    FLEET_SECRET,
    MODEL,
    PRIORITY,
    TENANT,
    TENANT_WEIGHT,
)
from ..gateway.fleet.identity import (
    MAX_WEIGHT,
    MIN_WEIGHT,
    TENANT_NAME,
    TENANT_NAME_RULE,
    api_key,
    bearer,
    is_local,
    is_loopback,
    matches,
    parse_weight,
)
from .access import Access, Tenant
from .errors import ApiError, bad_field, no_path

# Adapters belong to all tenants: these two, named as vLLM does, are an admin's.
_ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

# Named as vLLM does.
_TENANT_PATHS = frozenset({"/tokenize", "/detokenize"})

_PRIORITY = re.compile(r"-?[0-9]{1,6}")
MAX_MODEL_LENGTH = 256

_CHALLENGE: Mapping[str, str] = {"www-authenticate": "Bearer"}


class Admission:
    """Tells tenants and admins apart; ``host`` is what the server listens on."""

    def __init__(self, access: Access, host: str) -> None:
        self._access = access
        self._keyless_admin = (
            is_loopback(host) and not access.asks_for_keys and not access.admin_keys
        )

    def tenant(self, headers: Headers) -> Tenant:
        """Who sends this; raises ApiError 401 without a valid key, 400 for bad fleet headers.

        The fleet's secret stands for a key, and only with it the tenant headers are read.
        """
        own = self._tenant_of_key(headers)
        if self.is_fleet(headers):
            return self._forwarded(headers, own or self._access.tenant(DEFAULT_TENANT))
        if own is None:
            raise _unauthorized("A valid API key is needed", "invalid_api_key")
        return own

    def check_admin(self, headers: Headers) -> None:
        """Raises ApiError 401 without an admin key, 403 where the admin API is off.

        Without admin keys it is on only for this machine's own users: on loopback, while no
        other keys are set, and for neither browsers' pages nor what a proxy passes on.
        """
        if self._access.admin_keys:
            key = bearer(headers)
            if key is None or matches(key, self._access.admin_keys) is None:
                raise _unauthorized("A valid admin key is needed", "invalid_admin_key")
        elif not (self._keyless_admin and is_local(headers)):
            raise ApiError(
                "The admin API is off here. Start the server with --admin-key KEY or set "
                "BRANCHLINE_ADMIN_KEY. (Without one it answers only on a loopback address, while "
                "no API keys are set, and not through a proxy or a browser's page.)",
                status=403,
                type="permission_error",
                code="admin_disabled",
            )

    def check_fleet(self, headers: Headers, method: str, path: str) -> None:
        """Raises ApiError 404 without the fleet's secret, as for a path where nothing is."""
        if not self.is_fleet(headers):
            raise no_path(method, path)

    def _tenant_of_key(self, headers: Headers) -> Tenant | None:
        if not self._access.keys:
            return None if self._access.is_closed else self._access.tenant(DEFAULT_TENANT)
        key = api_key(headers)
        return None if key is None else self._access.tenant_of(key)

    def is_fleet(self, headers: Headers) -> bool:
        """Whether a gateway or another replica of the fleet sends this."""
        secret = self._access.fleet_secret
        given = headers.getlist(FLEET_SECRET)
        return (
            secret is not None
            and len(given) == 1
            and matches(given[0].strip().encode("latin-1"), [secret]) is not None
        )

    def _forwarded(self, headers: Headers, otherwise: Tenant) -> Tenant:
        """The tenant that the gateway names, on its terms; its weight, else the configured one."""
        name, weight = _name(headers, TENANT), _single(headers, TENANT_WEIGHT)
        tenant = otherwise if name is None else self._access.tenant(name)
        if weight is not None:
            number = parse_weight(weight)
            if number is None:
                allowed = f"must be a number from {MIN_WEIGHT} to {MAX_WEIGHT:g}"
                raise bad_field(TENANT_WEIGHT, allowed)
            tenant = replace(tenant, weight=number)
        group = _name(headers, CACHE_GROUP)
        return replace(tenant, priority=_priority(headers), cache_group=group)


def is_admin_path(path: str) -> bool:
    """Whether a path is for who has the admin key."""
    return path == "/admin" or path.startswith("/admin/") or path in _ADMIN_PATHS


def is_tenant_path(path: str) -> bool:
    """Whether a path is for who has an API key."""
    return path.startswith("/v1/") or path in _TENANT_PATHS


def _single(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if len(values) > 1:
        raise bad_field(name, "is given more than once")
    return values[0].strip() if values else None


def is_fleet_path(path: str) -> bool:
    """Whether a path is for the fleet's gateways and replicas."""
    return path == "/fleet" or path.startswith("/fleet/")


def model_of(headers: Headers) -> str | None:
    """The catalog's name that a gateway has answer; raises ApiError 400 for a bad one."""
    name = _single(headers, MODEL)
    if name is not None and not (0 < len(name) <= MAX_MODEL_LENGTH and name.isprintable()):
        raise bad_field(MODEL, f"must be 1 to {MAX_MODEL_LENGTH} printable characters")
    return name


def _name(headers: Headers, header: str) -> str | None:
    name = _single(headers, header)
    if name is not None and not TENANT_NAME.fullmatch(name):
        raise bad_field(header, f"must be {TENANT_NAME_RULE}")
    return name


def _priority(headers: Headers) -> int:
    text = _single(headers, PRIORITY)
    if text is None:
        return 0
    if not _PRIORITY.fullmatch(text):
        raise bad_field(PRIORITY, "must be an integer of at most 6 digits")
    return int(text)


def _unauthorized(what: str, code: str) -> ApiError:
    return ApiError(
        f"{what}: send the header 'Authorization: Bearer KEY'.",
        status=401,
        type="authentication_error",
        code=code,
        headers=_CHALLENGE,
    )
