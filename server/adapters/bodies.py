"""The bodies of the adapter API: what comes in, strict, and what goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Struct
from pydantic import Field

from ...engine.adapter_types import FreedAdapter, PinTier, Tier
from ..aliases import AliasTarget
from ..body_lists import Items
from ..catalog import AdapterVersion
from ..openai import Part
from .results import AdapterState, AliasState, RemovalResult
from .sources import shown_location

VersionNumber = Annotated[int, Field(ge=1, le=2**53)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class PutAdapter(Part):
    """The body of ``PUT /admin/adapters/{name}``: where to fetch it from."""

    source: Text
    pin: Literal["host", "device"] | None = None


class UploadFields(Part):
    """What an uploaded form may hold beside the files."""

    pin: Literal["host", "device"] | None = None


class TierRequest(Part):
    """The body of ``pin``, ``load`` and ``evict``."""

    tier: Literal["host", "device"] = "device"


class RollbackRequest(Part):
    """The body of ``rollback``; without a version it is the one before the current one."""

    version: VersionNumber | None = None


class AliasShare(Part):
    """One part of a split; ``version`` None follows the adapter's current one."""

    adapter: Text
    version: VersionNumber | None = None
    percent: Annotated[float, Field(ge=0, le=100)]


class PutAlias(Part):
    """The body of ``PUT /admin/aliases/{alias}``: one ``adapter``, or a ``split``."""

    adapter: Text | None = None
    version: VersionNumber | None = None
    split: Annotated[Items[AliasShare], Field(min_length=1)] | None = None


class LoadLora(Part):
    """vLLM's body of ``/v1/load_lora_adapter``; of the last two nothing depends here."""

    lora_name: str | None = None
    lora_path: str | None = None
    load_inplace: bool | None = None
    is_3d_lora_weight: Literal[False] | None = None
    base_model_name: str | None = None


class UnloadLora(Part):
    """vLLM's body of ``/v1/unload_lora_adapter``; the number is vLLM's own and read past."""

    lora_name: str | None = None
    lora_int_id: int | None = None


class SourceEntry(Struct, frozen=True):
    """Where a version came from; a URL is shown without its secrets."""

    kind: str
    location: str

    @classmethod
    def of(cls, version: AdapterVersion) -> SourceEntry:
        """The source of a version."""
        return cls(version.source.kind, shown_location(version.source.location))


class AdapterBytes(Struct, frozen=True):
    """What a version takes on each tier when it is there."""

    device: int
    host: int
    disk: int


class AdapterEntry(Struct, frozen=True, kw_only=True):
    """One name as it stands; times are Unix seconds, ``leases`` requests that hold it."""

    name: str
    version: int
    versions: list[int]
    digest: str
    rank: int
    modules: list[str]
    bytes: AdapterBytes
    tier: Tier | None
    is_loading: bool
    pin: PinTier | None
    leases: int
    last_used: float | None
    loads: int
    evictions: int
    error: str | None
    source: SourceEntry
    created: float
    aliases: list[str]

    @classmethod
    def of(cls, state: AdapterState) -> AdapterEntry:
        """From what the manager knows; the engine may not have the adapter at the moment."""
        version, facts, report = state.version, state.version.facts, state.report
        return cls(
            name=state.name,
            version=version.number,
            versions=list(state.versions),
            digest=version.digest,
            rank=facts.rank,
            modules=list(facts.modules),
            bytes=AdapterBytes(
                device=report.device_bytes if report else facts.device_bytes,
                host=report.host_bytes if report else facts.file_bytes,
                disk=facts.file_bytes,
            ),
            tier=report.tier if report else None,
            is_loading=report is not None and report.is_loading,
            pin=state.pin,
            leases=state.leases,
            last_used=report.last_used if report else None,
            loads=report.num_loads if report else 0,
            evictions=report.num_evictions if report else 0,
            error=state.error or (report.error if report else None),
            source=SourceEntry.of(version),
            created=version.created,
            aliases=list(state.aliases),
        )


class AdapterList(Struct, frozen=True):
    """A page of adapters by name; ``last`` is the ``after`` of the next one."""

    adapters: list[AdapterEntry]
    has_more: bool
    last: str | None


class PutAnswer(Struct, frozen=True):
    """What a put or a roll back came to; ``changed`` is false where it was so already."""

    changed: bool
    adapter: AdapterEntry


class FreedBytes(Struct, frozen=True):
    """Bytes that are free again."""

    device: int
    host: int

    @classmethod
    def of(cls, freed: FreedAdapter | None) -> FreedBytes | None:
        """None where that is not known, or nothing was freed."""
        return None if freed is None else cls(freed.device_bytes, freed.host_bytes)


class RemovalAnswer(Struct, frozen=True, kw_only=True):
    """A removal: the name is gone; ``done`` once the memory is too.

    ``requests`` still hold it. ``freed`` is null until it is done, and where another name has
    the same bytes.
    """

    name: str
    removed: Literal[True] = True
    done: bool
    requests: int
    freed: FreedBytes | None

    @classmethod
    def of(cls, result: RemovalResult) -> RemovalAnswer:
        """From what the manager says."""
        return cls(
            name=result.name,
            done=result.done,
            requests=result.leases,
            freed=FreedBytes.of(result.freed),
        )


class VersionEntry(Struct, frozen=True, kw_only=True):
    """One version that is kept."""

    version: int
    is_current: bool
    digest: str
    rank: int
    modules: list[str]
    source: SourceEntry
    created: float

    @classmethod
    def of(cls, version: AdapterVersion, current: int) -> VersionEntry:
        """One of a name's versions, of which ``current`` answers."""
        return cls(
            version=version.number,
            is_current=version.number == current,
            digest=version.digest,
            rank=version.facts.rank,
            modules=list(version.facts.modules),
            source=SourceEntry.of(version),
            created=version.created,
        )


class VersionList(Struct, frozen=True):
    """The versions of a name, oldest first."""

    name: str
    versions: list[VersionEntry]


class ShareEntry(Struct, frozen=True):
    """A part of an alias's keys; ``version`` null is the adapter's current one."""

    adapter: str
    version: int | None
    percent: float

    @classmethod
    def list_of(cls, targets: Sequence[AliasTarget]) -> list[ShareEntry]:
        """The whole split."""
        return [cls(target.adapter, target.version, target.percent) for target in targets]


class AliasEntry(Struct, frozen=True, kw_only=True):
    """One alias; ``previous`` is where a roll back would point it, null without one."""

    alias: str
    split: list[ShareEntry]
    previous: list[ShareEntry] | None
    created: float

    @classmethod
    def of(cls, state: AliasState) -> AliasEntry:
        """From what the manager knows."""
        return cls(
            alias=state.name,
            split=ShareEntry.list_of(state.targets),
            previous=None if state.previous is None else ShareEntry.list_of(state.previous),
            created=state.created,
        )


class AliasList(Struct, frozen=True):
    """Every alias."""

    aliases: list[AliasEntry]


class AliasRemoval(Struct, frozen=True):
    """The alias is gone."""

    alias: str
    removed: Literal[True] = True


class LoraAnswer(Struct, frozen=True, kw_only=True):
    """vLLM's answers for a client that takes only JSON; ``done`` as in ``RemovalAnswer``."""

    message: str
    lora_name: str
    changed: bool | None = None
    done: bool | None = None


BODIES = (
    *(PutAdapter, UploadFields, TierRequest, RollbackRequest),
    *(PutAlias, LoadLora, UnloadLora),
)
STRUCTS = (
    *(AdapterEntry, AdapterList, PutAnswer, RemovalAnswer, VersionList),
    *(AliasEntry, AliasList, AliasRemoval, LoraAnswer),
)
