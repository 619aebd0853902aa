"""What both doors, a gateway's and a replica's, know of secrets, names and addresses."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence

TENANT_NAME = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
TENANT_NAME_RULE = "1 to 128 printable ASCII characters"
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
PROBE_TENANT = "branchline-probe"
"""Who sends the fleet's secret to a gateway: a health check. No tenant is called that."""

# What a proxy adds: behind one, a client is not on this machine whatever the address says.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def digest_key(key: str | bytes) -> bytes:
    """A secret as it is kept: sha256, 32 bytes."""
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return hashlib.sha256(raw).digest()


def matches(given: str | bytes, digests: Sequence[bytes]) -> int | None:
    """Which digest is that of ``given``; how long it takes tells nothing about it."""
    digest = digest_key(given)
    equal = [hmac.compare_digest(digest, entry) for entry in digests]
    return equal.index(True) if any(equal) else None


def parse_weight(text: str) -> float | None:
    """A weight as a client or an operator writes it; None for what is none."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if MIN_WEIGHT <= weight <= MAX_WEIGHT else None


def bearer(headers: Mapping[str, str]) -> bytes | None:
    """The key of ``Authorization: Bearer KEY``, in the bytes that were sent.

    ``headers`` has names in lower case, or does not tell the case apart, and latin-1 values.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def api_key(headers: Mapping[str, str]) -> bytes | None:
    """The key of ``Authorization: Bearer KEY``, else that of ``x-api-key: KEY``."""
    key = bearer(headers)
    if key is None and "x-api-key" in headers:
        return headers["x-api-key"].strip().encode("latin-1")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``, an address or a name without a port."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(headers: Mapping[str, str]) -> bool:
    """Whether a request came straight to a loopback address, and not from a web page.

    A page of another site can send requests here, and with a name that it points at 127.0.0.1
    read the answers: browsers then say so in ``Origin`` or ``Host``.
    """
    if any(name in headers for name in ("origin", *_FORWARDED)):
        return False
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name)
