"""Who may use ``/admin`` and ``/debug``."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import GatewayError
from .fleet.identity import bearer, is_local, matches


class AdminCheck:
    """``keys`` are sha256 digests. ``keyless``: without any, this machine's own users may."""

    def __init__(self, keys: tuple[bytes, ...], *, keyless: bool) -> None:
        self._keys, self._keyless = keys, keyless

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises GatewayError 401 without an admin key, 403 where the admin API is off."""
        if self._keys:
            key = bearer(headers)
            if key is None or matches(key, self._keys) is None:
                raise GatewayError(
                    401,
                    "A valid admin key is needed: send the header 'Authorization: Bearer KEY'.",
                    code="invalid_admin_key",
                    headers={"www-authenticate": "Bearer"},
                )
        elif not (self._keyless and is_local(headers)):
            raise GatewayError(
                403,
                "The admin API is off here. Start the gateway with --admin-key KEY or set "
                "BRANCHLINE_ADMIN_KEY. (Without one it answers only on a loopback address, with "
                "--allow-anonymous, and not through a proxy or a browser's page.)",
                code="admin_disabled",
            )
