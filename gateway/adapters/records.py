"""What the fleet keeps of names, versions and aliases: plain values, JSON in the store."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from ..fleet.aliases import AliasTarget
from ..fleet.versions import PinTier, VersionReport, wire_name


class Source(msgspec.Struct, frozen=True):
    """Where a version came from; a URL is kept without its query, which may be a secret."""

    kind: str
    location: str


class AdapterVersion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of one name; ``number`` is given once, until the name is deleted.

    ``blob`` is the sha256 of the archive at the replica that made it first. ``created`` is Unix
    seconds; the rest is as in ``VersionReport``.
    """

    number: int
    version_id: str
    digest: str
    text_digest: str | None = None
    blob: str | None = None
    source: Source
    created: float
    rank: int
    modules: tuple[str, ...]
    device_bytes: int
    host_bytes: int
    file_bytes: int
    uses_base_prefix: bool = False

    @classmethod
    def of(cls, report: VersionReport, source: Source, created: float) -> AdapterVersion:
        """What a replica has made, without a number yet."""
        return cls(
            number=0,
            version_id=report.version_id,
            digest=report.digest,
            text_digest=report.text_digest,
            blob=report.blob,
            source=source,
            created=created,
            rank=report.rank,
            modules=tuple(report.modules),
            device_bytes=report.device_bytes,
            host_bytes=report.host_bytes,
            file_bytes=report.file_bytes,
            uses_base_prefix=report.uses_base_prefix,
        )

    @property
    def wire_name(self) -> str:
        """What replicas know it as."""
        return wire_name(self.version_id)


class AdapterRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One name. ``versions`` are those that are kept, oldest first.

    ``history`` are numbers of kept versions in the order in which they became current, each once:
    the last one is current, the one before it is where a roll back leads.
    """

    versions: tuple[AdapterVersion, ...] = ()
    history: tuple[int, ...] = ()
    next_number: int = 1
    pin: PinTier | None = None

    @property
    def current(self) -> AdapterVersion:
        """The version that answers."""
        version = self.find(self.history[-1])
        assert version is not None
        return version

    def find(self, number: int) -> AdapterVersion | None:
        """A version by its number, None if it is not kept."""
        return next((version for version in self.versions if version.number == number), None)

    def with_version(self, version: AdapterVersion) -> AdapterRecord:
        """With a new version, that is current."""
        new = msgspec.structs.replace(version, number=self.next_number)
        return msgspec.structs.replace(
            self,
            versions=(*self.versions, new),
            history=(*self.history, new.number),
            next_number=new.number + 1,
        )

    def turned_to(self, number: int) -> AdapterRecord:
        """With another kept version current."""
        rest = [entry for entry in self.history if entry != number]
        return msgspec.structs.replace(self, history=(*rest, number))

    def rolled_back(self) -> AdapterRecord | None:
        """With the version current that was so before; None if there is none."""
        if len(self.history) < 2:
            return None
        return msgspec.structs.replace(self, history=self.history[:-1])

    def pinned(self, tier: PinTier | None) -> AdapterRecord:
        """With another pin."""
        return msgspec.structs.replace(self, pin=tier)

    def pruned(self, max_older: int, needed: Set[int]) -> AdapterRecord:
        """Without the oldest versions, but for ``max_older``, the current and the needed ones."""
        keep = {*needed, self.history[-1]}
        older = [version.number for version in self.versions if version.number not in keep]
        gone = set(older[: max(0, len(older) - max_older)])
        return msgspec.structs.replace(
            self,
            versions=tuple(v for v in self.versions if v.number not in gone),
            history=tuple(number for number in self.history if number not in gone),
        )


class AliasRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One alias; ``previous`` is where it pointed before. ``created`` is Unix seconds."""

    targets: tuple[AliasTarget, ...]
    created: float
    previous: tuple[AliasTarget, ...] | None = None

    def pointed_at(self, targets: tuple[AliasTarget, ...]) -> AliasRecord:
        """With other targets."""
        if targets == self.targets:
            return self
        return msgspec.structs.replace(self, targets=targets, previous=self.targets)

    def leads_to(self, adapter: str) -> bool:
        """Whether one of its targets is that adapter."""
        return any(target.adapter == adapter for target in self.targets)

    def without_before(self, adapter: str) -> AliasRecord:
        """With nothing to roll back to where that leads to this adapter."""
        if all(target.adapter != adapter for target in self.previous or ()):
            return self
        return msgspec.structs.replace(self, previous=None)

    def numbers_of(self, adapter: str) -> set[int]:
        """Versions of an adapter that it names, or named before."""
        return {
            target.version
            for target in (*self.targets, *(self.previous or ()))
            if target.adapter == adapter and target.version is not None
        }
