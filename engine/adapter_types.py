"""What the engine says of its adapters, and what it is asked to do with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["disk", "host", "device"]
"""Where the nearest copy of an adapter's weights is: its file, host memory, the device."""

PinTier = Literal["host", "device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """One adapter version in the engine.

    ``device_bytes`` and ``host_bytes`` are what it takes there when it is there. ``num_requests``
    are those that hold it or wait for it. ``last_used`` is Unix seconds. ``num_loads`` and
    ``num_evictions`` count its ways to the device and back, ``error`` is why its last load failed.
    """

    digest: str
    rank: int
    tier: Tier
    device_bytes: int
    host_bytes: int
    is_loading: bool = False
    pin: PinTier | None = None
    num_requests: int = 0
    last_used: float | None = None
    num_loads: int = 0
    num_evictions: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEvent:
    """An adapter came to a tier or left it, or its load there failed.

    ``seconds`` is how long the load took, from its start to when the adapter could be used.
    """

    digest: str
    tier: PinTier
    kind: Literal["loaded", "evicted", "failed"]
    num_bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedAdapter:
    """What a version's removal gave back, in bytes."""

    device_bytes: int
    host_bytes: int
