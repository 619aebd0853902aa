"""The one way to adapters and aliases for whoever administers them: every verb, every report."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ...engine.adapter_types import AdapterReport, PinTier
from ..aliases import AliasTarget
from ..catalog import AdapterVersion
from ..supervisor import Engine
from .aliases import AliasVerbs
from .changes import AdapterChanges, NameOf
from .intake import AdapterIntake
from .live_registry import LiveRegistry
from .names import not_there
from .registry import AdapterRecord, Registry
from .results import AdapterState, AliasState, PutResult, RemovalResult
from .revival import Revival, restore
from .sources import AdapterSource
from .tiers import AdapterTiers

__all__ = ["AdapterManager", "AdapterState", "AliasState", "PutResult", "RemovalResult"]


class AdapterManager:
    """Names, versions, aliases: changed here and nowhere else.

    Raises AdapterError for an adapter that is refused, ApiError for a name that is not there, is
    taken or is in use, EngineDeadError while there is no engine. ``max_older`` versions are kept
    beside a name's current one.
    """

    def __init__(self, live: LiveRegistry, intake: AdapterIntake, max_older: int) -> None:
        self._live = live
        self._tiers = AdapterTiers(live)
        self._changes = AdapterChanges(live, intake, self._tiers, max_older)
        self._revival = Revival(live, intake)
        self._aliases = AliasVerbs(live, self._revival)

    def staging(self) -> AbstractContextManager[Path]:
        """An empty directory for an upload, gone at the end of the context."""
        return self._live.workroom()

    async def put(
        self,
        name: str,
        source: AdapterSource,
        *,
        staged: Path | None = None,
        pin: PinTier | None = None,
    ) -> PutResult:
        """Fetch, check and format an adapter, then make it what ``name`` answers with.

        ``staged`` is the directory of an upload, in a ``staging``; it may be moved away. The same
        bytes as the current version's change nothing. Whatever fails leaves nothing behind.
        """
        return await self._changes.put(name, source, staged, pin)

    async def put_by_operator(
        self, name: str, source: AdapterSource, turn: Awaitable[object]
    ) -> PutResult | None:
        """As ``put``, of what the command line names; it takes its place after ``turn``.

        None, and nothing is done, where the bytes are one of the versions of a name that answers.
        """
        return await self._changes.put_by_operator(name, source, turn)

    async def put_by_content(self, source: AdapterSource, name_of: NameOf) -> str:
        """As ``put``, under a name that ``name_of`` makes of the digests; returns that name."""
        return await self._changes.put_by_content(source, name_of)

    async def delete(self, name: str, wait: float) -> RemovalResult:
        """Forget a name at once; wait up to ``wait`` seconds for its memory."""
        return await self._changes.delete(name, wait)

    async def rollback(self, name: str, number: int | None = None) -> PutResult:
        """Make an older version current again; None is the one that was so before."""
        return await self._changes.rollback(name, number)

    def versions(self, name: str) -> builtins.list[AdapterVersion]:
        """The versions that are kept, oldest first; raises ApiError 404."""
        return list(self._record(name).versions)

    async def get(self, name: str) -> AdapterState:
        """One name; raises ApiError 404."""
        reports = await self._live.engine.reports([self._record(name).current.digest])
        return self._state(name, reports, self._live.registry.aliases_of(name))

    async def list(self) -> builtins.list[AdapterState]:
        """All names, in the order they came."""
        reports = await self._live.engine.reports()
        registry = self._live.registry
        aliases = {name: builtins.list[str]() for name in registry.adapters}
        for alias, entry in registry.aliases.items():
            for adapter in dict.fromkeys(target.adapter for target in entry.targets):
                aliases[adapter].append(alias)
        return [self._state(name, reports, aliases[name]) for name in registry.adapters]

    def _state(
        self, name: str, reports: Mapping[str, AdapterReport], aliases: Sequence[str]
    ) -> AdapterState:
        record = self._record(name)
        version = record.current
        report = reports.get(version.digest)
        failures = (
            self._tiers.errors.get(name),
            self._live.failures.get(version.digest),
            None if report is None else report.error,
        )
        return AdapterState(
            name=name,
            version=version,
            versions=tuple(version.number for version in record.versions),
            report=report,
            pin=record.pin,
            leases=self._live.catalog.leases.count(version.digest),
            aliases=tuple(aliases),
            error=next(filter(None, failures), None),
        )

    def _record(self, name: str) -> AdapterRecord:
        record = self._live.registry.adapters.get(name)
        if record is None:
            raise not_there(name, "adapter")
        return record

    async def pin(self, name: str, tier: PinTier) -> AdapterState:
        """Keep the current version at a tier, and those that follow it."""
        await self._tiers.pin(name, tier)
        return await self.get(name)

    async def unpin(self, name: str) -> AdapterState:
        """End a pin."""
        await self._tiers.pin(name, None)
        return await self.get(name)

    async def load(self, name: str, tier: PinTier) -> AdapterState:
        """Bring the current version to a tier; answers when it is there."""
        await self._tiers.load(name, tier)
        return await self.get(name)

    async def evict(self, name: str, tier: PinTier) -> AdapterState:
        """Take the current version off a tier."""
        await self._tiers.evict(name, tier)
        return await self.get(name)

    async def put_alias(self, alias: str, targets: Sequence[AliasTarget]) -> AliasState:
        """Point an alias, new or not, at adapters; percents sum to 100."""
        return await self._aliases.put(alias, targets)

    async def delete_alias(self, alias: str) -> None:
        """Forget an alias; raises ApiError 404."""
        await self._aliases.delete(alias)

    async def rollback_alias(self, alias: str) -> AliasState:
        """Point an alias where it pointed before; raises ApiError 409 without a before."""
        return await self._aliases.rollback(alias)

    def list_aliases(self) -> builtins.list[AliasState]:
        """All aliases, in the order they came."""
        return self._aliases.states()

    async def restore(self, registry: Registry) -> dict[str, str]:
        """Serve what a state directory had; by name, why its current version can't be had."""
        failures = await restore(self._live, self._revival, registry)
        pinned = [name for name, record in registry.adapters.items() if record.pin is not None]
        await asyncio.gather(*map(self._tiers.hold, pinned))
        return failures

    async def restart(self, engine: Engine) -> None:
        """Give a restarted engine all that it has to have; what fails is its name's failure."""
        needed = self._live.needed
        self._live.failures.update(await self._live.engine.add_all(needed, engine.calls))
        self._live.show_again(needed)
        for digest in needed:
            if not self._live.is_needed(digest):  # any more
                self._live.settle(digest)

    async def close(self) -> None:
        """End what runs in the background, once the engine has stopped."""
        await self._live.close()
