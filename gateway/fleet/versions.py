"""Adapter versions as gateways and replicas speak of them: named by what they hold, never changed.

A replica knows a version as the catalog name ``fleet/{version id}``; no admin can take such a name.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import msgspec

from .records import Record

FLEET_PREFIX = "fleet/"
VERSION_ID = re.compile(r"[0-9a-f]{32}")
SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_PEERS = 16

Tier = Literal["device", "host", "disk"]
PinTier = Literal["host", "device"]


def version_id_of(digest: str, text_digest: str | None) -> str:
    """32 hexadecimal digits for an adapter's digest and that of its text files."""
    text = f"{digest} {text_digest or ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def wire_name(version_id: str) -> str:
    """What replicas know a version as."""
    return FLEET_PREFIX + version_id


def is_fleet_name(name: str) -> bool:
    """Whether a name belongs to the fleet's versions."""
    return name.startswith(FLEET_PREFIX)


class PutVersion(Record, frozen=True, kw_only=True):
    """The body of ``POST /fleet/versions``.

    The archive is the blob with the sha256 ``blob``, here already or at one of ``peers`` (base
    URLs), else it is made of ``source``, as an admin writes one. With a ``version_id`` a peer gives
    the archive that it made that version of, and other bytes are refused (409 ``source_changed``).
    """

    blob: str | None = None
    source: str | None = None
    peers: list[str] = msgspec.field(default_factory=list)
    version_id: str | None = None
    pin: PinTier | None = None


class BlobAnswer(Record, frozen=True, kw_only=True):
    """An archive that is stored; ``fields`` are those of the form that it came in."""

    sha256: str
    size: int
    fields: dict[str, str] = msgspec.field(default_factory=dict)


class BlobRemoval(Record, frozen=True, kw_only=True):
    """Whether an archive is still there: something may have been made of it."""

    is_there: bool


class VersionReport(Record, frozen=True, kw_only=True):
    """One version at one replica; bytes are what it takes on a tier when it is there.

    ``blob`` is the sha256 of the archive, ``source`` the kind and place that it was fetched from by
    the put that this answers. Times are Unix seconds.
    """

    version_id: str
    digest: str
    text_digest: str | None = None
    blob: str | None = None
    rank: int
    modules: list[str]
    device_bytes: int
    host_bytes: int
    file_bytes: int
    uses_base_prefix: bool = False
    tier: Tier | None = None
    is_loading: bool = False
    pin: PinTier | None = None
    leases: int = 0
    last_used: float | None = None
    loads: int = 0
    evictions: int = 0
    error: str | None = None
    source_kind: str | None = None
    source: str | None = None


class VersionReports(Record, frozen=True, kw_only=True):
    """Every version at one replica."""

    versions: list[VersionReport]


class VersionRemoval(Record, frozen=True, kw_only=True):
    """A version that a replica forgets; ``done`` once its memory is free."""

    done: bool
    requests: int = 0
    freed_device_bytes: int = 0
    freed_host_bytes: int = 0
