"""How many responses are kept, and how long."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FINDS, MAX_FINDS_OF_TENANT = 4, 2
"""Responses that a process fetches and unpacks at a time, of tens of megabytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLimits:
    """The bounds of kept responses: seconds, packed bytes, number, and bytes of a single one,
    packed and as JSON.

    They hold for a server's memory as a whole, and in a fleet's Redis for each tenant.
    """

    ttl: float = 86400.0
    max_bytes: int = 64 << 20
    max_number: int = 10_000
    max_response_bytes: int = 4 << 20
    max_json_bytes: int = 16 << 20
