"""What the verbs on adapters and aliases answer."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.adapter_types import AdapterReport, FreedAdapter, PinTier
from ..aliases import AliasTarget
from ..catalog import AdapterVersion


@dataclass(frozen=True, slots=True)
class PutResult:
    """What a put or a roll back has made current; ``changed`` False: it already was."""

    version: AdapterVersion
    created: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class RemovalResult:
    """What a removal has come to.

    ``done``: its memory is free, ``freed`` says how much (None while not done, and where another
    name still has the same bytes). ``leases`` are the requests that still hold it.
    """

    name: str
    done: bool
    leases: int
    freed: FreedAdapter | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """One name as it stands.

    ``version`` is the current one, ``versions`` the numbers that are kept. ``report`` is the
    engine's, None where the engine does not have it. ``leases`` are requests that hold the current
    version. ``error`` is the last thing that failed under this name, until something succeeds.
    """

    name: str
    version: AdapterVersion
    versions: tuple[int, ...]
    report: AdapterReport | None
    pin: PinTier | None
    leases: int
    aliases: tuple[str, ...]
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasState:
    """One alias; ``previous`` is what a roll back would bring back, None without."""

    name: str
    targets: tuple[AliasTarget, ...]
    previous: tuple[AliasTarget, ...] | None
    created: float
