"""From a request's headers to who sends it; the only reader of keys and fleet headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers

from ..engine.types import DEFAULT_TENANT
from .access import (
    MAX_WEIGHT,
    MIN_WEIGHT,
    TENANT_NAME,
    TENANT_NAME_RULE,
    Access,
    Tenant,
    matches,
    parse_weight,
)
from .errors import ApiError, bad_field

FLEET_SECRET = "x-branchline-fleet-secret"
TENANT = "x-branchline-tenant"
TENANT_WEIGHT = "x-branchline-tenant-weight"

# Adapters belong to all tenants: these two, named as vLLM does, are an admin's.
_ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

_CHALLENGE: Mapping[str, str] = {"www-authenticate": "Bearer"}
# What a proxy adds: behind one, a client is not on this machine whatever the address says.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


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
        if self._is_fleet(headers):
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
            key = _bearer(headers)
            if key is None or matches(key, self._access.admin_keys) is None:
                raise _unauthorized("A valid admin key is needed", "invalid_admin_key")
        elif not (self._keyless_admin and _is_local(headers)):
            raise ApiError(
                "The admin API is off here. Start the server with --admin-key KEY or set "
                "BRANCHLINE_ADMIN_KEY. (Without one it answers only on a loopback address, while "
                "no API keys are set, and not through a proxy or a browser's page.)",
                status=403,
                type="permission_error",
                code="admin_disabled",
            )

    def _tenant_of_key(self, headers: Headers) -> Tenant | None:
        if not self._access.keys:
            return self._access.tenant(DEFAULT_TENANT)
        key = _bearer(headers)
        return None if key is None else self._access.tenant_of(key)

    def _is_fleet(self, headers: Headers) -> bool:
        secret = self._access.fleet_secret
        given = headers.getlist(FLEET_SECRET)
        return (
            secret is not None
            and len(given) == 1
            and matches(given[0].strip().encode("latin-1"), [secret]) is not None
        )

    def _forwarded(self, headers: Headers, otherwise: Tenant) -> Tenant:
        """The tenant that the gateway names; its weight, else the configured one."""
        name, weight = _single(headers, TENANT), _single(headers, TENANT_WEIGHT)
        tenant = otherwise
        if name is not None:
            if not TENANT_NAME.fullmatch(name):
                raise bad_field(TENANT, f"must be {TENANT_NAME_RULE}")
            tenant = self._access.tenant(name)
        if weight is None:
            return tenant
        number = parse_weight(weight)
        if number is None:
            raise bad_field(TENANT_WEIGHT, f"must be a number from {MIN_WEIGHT} to {MAX_WEIGHT:g}")
        return Tenant(tenant.name, number)


def is_admin_path(path: str) -> bool:
    """Whether a path is for who has the admin key."""
    return path == "/admin" or path.startswith("/admin/") or path in _ADMIN_PATHS


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``, an address or a name without a port."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(headers: Headers) -> bool:
    """Whether a request came straight to a loopback address, and not from a web page.

    A page of another site can send requests here, and with a name that it points at 127.0.0.1
    read the answers: browsers then say so in ``Origin`` or ``Host``.
    """
    if any(name in headers for name in ("origin", *_FORWARDED)):
        return False
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name)


def _bearer(headers: Headers) -> bytes | None:
    """The key of ``Authorization: Bearer KEY``, in the bytes that were sent."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def _single(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if len(values) > 1:
        raise bad_field(name, "is given more than once")
    return values[0].strip() if values else None


def _unauthorized(what: str, code: str) -> ApiError:
    return ApiError(
        f"{what}: send the header 'Authorization: Bearer KEY'.",
        status=401,
        type="authentication_error",
        code=code,
        headers=_CHALLENGE,
    )
