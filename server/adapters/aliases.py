"""The verbs on aliases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from ...engine.adapter_format import AdapterFacts
from ..aliases import AliasTarget, check_targets
from ..catalog import AdapterVersion
from ..errors import ApiError
from .live_registry import LiveRegistry
from .names import changed_meanwhile, check_new_name, not_there, taken
from .registry import AliasRecord, Registry
from .results import AliasState
from .revival import Revival


class AliasVerbs:
    """Aliases point at adapters that are there, and keep the versions that they name."""

    def __init__(self, live: LiveRegistry, revival: Revival) -> None:
        self._live = live
        self._revival = revival

    async def put(self, alias: str, targets: Sequence[AliasTarget]) -> AliasState:
        """Point an alias, new or not, at adapters; percents sum to 100."""
        check_new_name(alias, self._live.catalog, "alias")
        check_targets(targets)
        return await self._point(alias, tuple(targets))

    async def rollback(self, alias: str) -> AliasState:
        """Point an alias where it pointed before; raises ApiError 409 without a before."""
        record = self._live.registry.aliases.get(alias)
        if record is None:
            raise not_there(alias, "alias", "alias")
        if record.previous is None:
            raise ApiError(
                f"{alias!r} has not pointed anywhere else.",
                status=409,
                param="alias",
                code="no_earlier_version",
            )
        return await self._point(alias, record.previous)

    async def delete(self, alias: str) -> None:
        """Forget an alias; raises ApiError 404."""

        def change(registry: Registry) -> Registry:
            if alias not in registry.aliases:
                raise not_there(alias, "alias", "alias")
            return registry.without_alias(alias)

        await self._live.commit(change)

    def states(self) -> list[AliasState]:
        """All aliases, in the order they came."""
        return [_state(alias, record) for alias, record in self._live.registry.aliases.items()]

    async def _point(self, alias: str, targets: tuple[AliasTarget, ...]) -> AliasState:
        """In one piece: nobody who leaves can interrupt it."""
        work = self._live.background(self._finish(alias, targets))
        return await asyncio.shield(work)

    async def _finish(self, alias: str, targets: tuple[AliasTarget, ...]) -> AliasState:
        live = self._live
        versions = [_version(live.registry, target) for target in targets]
        ready = dict(zip(targets, versions, strict=True))
        async with AsyncExitStack() as claims:
            for version in versions:
                claim = live.claim(version.digest, version.text_digest)
                claims.push_async_callback(live.drop, claim)
            facts = [await self._revival.make_ready(version) for version in versions]
            committed = await live.commit(lambda now: _with_targets(now, alias, ready, facts))
            live.show_again(version.digest for version in versions)
        return _state(alias, committed.after.aliases[alias])


def _with_targets(
    registry: Registry,
    alias: str,
    ready: Mapping[AliasTarget, AdapterVersion],
    facts: Sequence[AdapterFacts],
) -> Registry:
    if alias in registry.adapters:
        raise taken(alias, "an adapter", "alias")
    for target, version in ready.items():
        found = _version(registry, target)
        if target.version is not None and not found.has_bytes_of(version):
            raise changed_meanwhile(target.adapter, "targets")
    for entry in facts:
        registry = registry.with_facts(entry.digest, entry)
    targets, record = tuple(ready), registry.aliases.get(alias)
    if record is None:
        record = AliasRecord(targets=targets, created=time.time())
    elif record.targets == targets:
        return registry
    else:
        record = replace(record, targets=targets, previous=record.targets)
    return registry.with_alias(alias, record)


def _version(registry: Registry, target: AliasTarget) -> AdapterVersion:
    """What a target is now; raises ApiError 404 for what is not there."""
    record = registry.adapters.get(target.adapter)
    if record is None:
        raise not_there(target.adapter, "adapter", "targets")
    version = record.current if target.version is None else record.find(target.version)
    if version is None:
        raise ApiError(
            f"targets: {target.adapter!r} has no version {target.version}",
            status=404,
            param="targets",
            code="version_not_found",
        )
    return version


def _state(alias: str, record: AliasRecord) -> AliasState:
    return AliasState(
        name=alias, targets=record.targets, previous=record.previous, created=record.created
    )
