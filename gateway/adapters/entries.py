"""What the fleet's admin API answers: a server's fields, taken together over replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ..fleet.aliases import AliasTarget
from ..fleet.versions import PinTier, Tier, VersionReport
from .records import AdapterRecord, AdapterVersion, AliasRecord, Source
from .removal import Removal

_TIERS: Sequence[Tier] = ("device", "host", "disk")


class Bytes(msgspec.Struct, frozen=True):
    """What a version takes on each tier of one replica when it is there."""

    device: int
    host: int
    disk: int


class ReplicaEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A version at one replica."""

    replica: str
    tier: Tier | None
    is_loading: bool
    pin: PinTier | None
    leases: int
    error: str | None

    @classmethod
    def of(cls, replica_id: str, report: VersionReport) -> ReplicaEntry:
        """From what the replica says."""
        return cls(
            replica=replica_id,
            tier=report.tier,
            is_loading=report.is_loading,
            pin=report.pin,
            leases=report.leases,
            error=report.error,
        )


class AdapterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One name as it stands; sums over ``replicas``, and the nearest tier of any."""

    name: str
    version: int
    versions: list[int]
    digest: str
    rank: int
    modules: list[str]
    bytes: Bytes
    tier: Tier | None
    is_loading: bool
    pin: PinTier | None
    leases: int
    last_used: float | None
    loads: int
    evictions: int
    error: str | None
    source: Source
    created: float
    aliases: list[str]
    replicas: list[ReplicaEntry]

    @classmethod
    def of(
        cls,
        name: str,
        record: AdapterRecord,
        aliases: Sequence[str],
        reports: Mapping[str, VersionReport],
    ) -> AdapterEntry:
        """From the registry and what replicas say."""
        version, said = record.current, list(reports.values())
        tiers = {report.tier for report in said}
        return cls(
            name=name,
            version=version.number,
            versions=[entry.number for entry in record.versions],
            digest=version.digest,
            rank=version.rank,
            modules=list(version.modules),
            bytes=Bytes(version.device_bytes, version.host_bytes, version.file_bytes),
            tier=next((tier for tier in _TIERS if tier in tiers), None),
            is_loading=any(report.is_loading for report in said),
            pin=record.pin,
            leases=sum(report.leases for report in said),
            last_used=max((r.last_used for r in said if r.last_used is not None), default=None),
            loads=sum(report.loads for report in said),
            evictions=sum(report.evictions for report in said),
            error=_error(said),
            source=version.source,
            created=version.created,
            aliases=list(aliases),
            replicas=[ReplicaEntry.of(one, reports[one]) for one in sorted(reports)],
        )


def _error(said: Sequence[VersionReport]) -> str | None:
    if not said:
        return "no replica that is up holds it"
    return next((report.error for report in said if report.error), None)


class AdapterList(msgspec.Struct, frozen=True):
    """A page of adapters by name; ``last`` is the ``after`` of the next one."""

    adapters: list[AdapterEntry]
    has_more: bool
    last: str | None


class PutAnswer(msgspec.Struct, frozen=True):
    """What a put or a roll back came to; ``changed`` is false where it was so already."""

    changed: bool
    adapter: AdapterEntry


class Freed(msgspec.Struct, frozen=True):
    """Bytes that are free again, over all replicas."""

    device: int
    host: int


class RemovalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A removal: the name is gone; ``done`` once the memory is too."""

    name: str
    removed: bool = True
    done: bool
    requests: int
    freed: Freed | None

    @classmethod
    def of(cls, removal: Removal) -> RemovalAnswer:
        """From what has come of it."""
        freed = Freed(removal.device_bytes, removal.host_bytes) if removal.done else None
        return cls(name=removal.name, done=removal.done, requests=removal.requests, freed=freed)


class VersionEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One version that is kept; ``replicas`` are those that have it."""

    version: int
    is_current: bool
    digest: str
    rank: int
    modules: list[str]
    source: Source
    created: float
    replicas: list[str]

    @classmethod
    def of(cls, version: AdapterVersion, current: int, replicas: Sequence[str]) -> VersionEntry:
        """One of a name's versions, of which ``current`` answers."""
        return cls(
            version=version.number,
            is_current=version.number == current,
            digest=version.digest,
            rank=version.rank,
            modules=list(version.modules),
            source=version.source,
            created=version.created,
            replicas=sorted(replicas),
        )


class VersionList(msgspec.Struct, frozen=True):
    """The versions of a name, oldest first."""

    name: str
    versions: list[VersionEntry]


class ShareEntry(msgspec.Struct, frozen=True):
    """A part of an alias's keys; ``version`` null is the adapter's current one."""

    adapter: str
    version: int | None
    percent: float

    @classmethod
    def list_of(cls, targets: Sequence[AliasTarget]) -> list[ShareEntry]:
        """The whole split."""
        return [cls(target.adapter, target.version, target.percent) for target in targets]


class AliasEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One alias; ``previous`` is where a roll back would point it, null without one."""

    alias: str
    split: list[ShareEntry]
    previous: list[ShareEntry] | None
    created: float

    @classmethod
    def of(cls, alias: str, record: AliasRecord) -> AliasEntry:
        """From the registry."""
        before = record.previous
        return cls(
            alias=alias,
            split=ShareEntry.list_of(record.targets),
            previous=None if before is None else ShareEntry.list_of(before),
            created=record.created,
        )


class AliasList(msgspec.Struct, frozen=True):
    """Every alias."""

    aliases: list[AliasEntry]


class AliasRemoval(msgspec.Struct, frozen=True):
    """The alias is gone."""

    alias: str
    removed: bool = True
