"""What is kept of names, versions, pins and aliases: plain values; every change makes new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ...engine.adapter_format import AdapterFacts
from ...engine.adapter_types import PinTier
from ..aliases import AliasTarget
from ..catalog import AdapterVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """One name. ``versions`` are those that are kept, oldest first.

    ``history`` are numbers of kept versions in the order in which they became current, each once:
    the last one is current, the one before it is where a roll back leads.
    """

    versions: tuple[AdapterVersion, ...]
    history: tuple[int, ...]
    next_number: int
    pin: PinTier | None = None

    @classmethod
    def empty(cls) -> AdapterRecord:
        """Of a name that has no version yet; no registry holds it."""
        return cls(versions=(), history=(), next_number=1)

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
        assert version.number == self.next_number
        return replace(
            self,
            versions=(*self.versions, version),
            history=(*self.history, version.number),
            next_number=version.number + 1,
        )

    def turned_to(self, number: int) -> AdapterRecord:
        """With another kept version current."""
        rest = [entry for entry in self.history if entry != number]
        return replace(self, history=(*rest, number))

    def rolled_back(self) -> AdapterRecord | None:
        """With the version current that was so before; None if there is none."""
        if len(self.history) < 2:
            return None
        return replace(self, history=self.history[:-1])

    def pruned(self, max_older: int, needed: frozenset[int]) -> AdapterRecord:
        """Without the oldest versions, but for ``max_older``, the current and the needed ones."""
        keep = needed | {self.history[-1]}
        older = [version.number for version in self.versions if version.number not in keep]
        gone = set(older[: max(0, len(older) - max_older)])
        return replace(
            self,
            versions=tuple(v for v in self.versions if v.number not in gone),
            history=tuple(number for number in self.history if number not in gone),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRecord:
    """One alias; ``previous`` is where it pointed before. ``created`` is Unix seconds."""

    targets: tuple[AliasTarget, ...]
    created: float
    previous: tuple[AliasTarget, ...] | None = None

    def without_before(self, adapter: str) -> AliasRecord:
        """With nothing to roll back to where that leads to this adapter."""
        if all(target.adapter != adapter for target in self.previous or ()):
            return self
        return replace(self, previous=None)


@dataclass(frozen=True, slots=True)
class Registry:
    """All names of adapters and all aliases, in the order they came."""

    adapters: Mapping[str, AdapterRecord] = field(default_factory=dict)
    aliases: Mapping[str, AliasRecord] = field(default_factory=dict)

    def with_adapter(self, name: str, record: AdapterRecord) -> Registry:
        """With that name's record."""
        return replace(self, adapters={**self.adapters, name: record})

    def without_adapter(self, name: str) -> Registry:
        """Without that name; an alias that pointed at it before has no before any more.

        For the name may come again, and its numbers then begin at 1 with other bytes.
        """
        adapters = {n: r for n, r in self.adapters.items() if n != name}
        aliases = {alias: record.without_before(name) for alias, record in self.aliases.items()}
        return replace(self, adapters=adapters, aliases=aliases)

    def with_alias(self, name: str, record: AliasRecord) -> Registry:
        """With that alias's record."""
        return replace(self, aliases={**self.aliases, name: record})

    def without_alias(self, name: str) -> Registry:
        """Without that alias."""
        return replace(self, aliases={n: r for n, r in self.aliases.items() if n != name})

    def with_facts(self, digest: str, facts: AdapterFacts) -> Registry:
        """With what the formatted file of a digest holds now, which depends on the base model."""
        if all(v.facts == facts for v in self.all_versions() if v.digest == digest):
            return self
        adapters = {
            name: replace(
                record,
                versions=tuple(
                    replace(version, facts=facts) if version.digest == digest else version
                    for version in record.versions
                ),
            )
            for name, record in self.adapters.items()
        }
        return replace(self, adapters=adapters)

    def pin_of(self, digest: str) -> PinTier | None:
        """The strongest pin of the names whose current version has these bytes."""
        pins = {
            record.pin
            for record in self.adapters.values()
            if record.pin is not None and record.current.digest == digest
        }
        return "device" if "device" in pins else "host" if pins else None

    def aliases_of(self, name: str) -> tuple[str, ...]:
        """Aliases with a target in that adapter."""
        return tuple(
            alias
            for alias, record in self.aliases.items()
            if any(target.adapter == name for target in record.targets)
        )

    def numbers_in_aliases(self, name: str) -> frozenset[int]:
        """Versions of an adapter that an alias names, or named before."""
        return frozenset(
            target.version
            for record in self.aliases.values()
            for target in (*record.targets, *(record.previous or ()))
            if target.adapter == name and target.version is not None
        )

    def all_serving(self) -> Iterator[tuple[str, AdapterVersion]]:
        """Name and version of all that a request can get: current ones and those of aliases."""
        in_aliases = {
            (target.adapter, target.version)
            for record in self.aliases.values()
            for target in record.targets
        }
        for name, adapter in self.adapters.items():
            for version in adapter.versions:
                if version.number == adapter.history[-1] or (name, version.number) in in_aliases:
                    yield name, version

    def all_versions(self) -> Iterator[AdapterVersion]:
        """Every version that is kept."""
        for record in self.adapters.values():
            yield from record.versions
