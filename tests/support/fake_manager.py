"""An adapter manager in memory: names, versions and aliases as the real one has them, no files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from branchline.engine.adapter_format import AdapterFacts
from branchline.engine.adapter_types import AdapterReport, FreedAdapter, PinTier, Tier
from branchline.lora.errors import AdapterError
from branchline.server.adapters.names import not_there
from branchline.server.adapters.results import (
    AdapterState,
    AliasState,
    PutResult,
    RemovalResult,
)
from branchline.server.adapters.sources import AdapterSource
from branchline.server.aliases import AliasTarget, check_targets
from branchline.server.catalog import AdapterVersion, Catalog, ServedModel
from branchline.server.errors import ApiError

CREATED = 1_700_000_000.0


@dataclass
class _Name:
    versions: dict[int, AdapterVersion]
    current: int
    tier: Tier = "disk"
    pin: PinTier | None = None


@dataclass
class FakeAdapters:
    """The manager's verbs. ``refuse`` maps a location to the error that it gives.

    ``num_requests`` are those that hold a name when it is removed, ``waits`` how long each removal
    was told to wait, ``uploads`` the files of each.
    """

    catalog: Catalog
    directory: Path
    refuse: dict[str, AdapterError] = field(default_factory=dict)
    num_requests: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    uploads: list[dict[str, bytes]] = field(default_factory=list)
    failure: Exception | None = None
    _names: dict[str, _Name] = field(default_factory=dict)
    _aliases: dict[str, AliasState] = field(default_factory=dict)

    async def put(
        self,
        name: str,
        source: AdapterSource,
        *,
        staged: Path | None = None,
        pin: PinTier | None = None,
    ) -> PutResult:
        if source.location in self.refuse:
            raise self.refuse[source.location]
        content = source.location.encode()
        if staged is not None:
            files = {path.name: path.read_bytes() for path in sorted(staged.iterdir())}
            self.uploads.append(files)
            content = b"".join(files.values())
        digest = hashlib.sha256(content).hexdigest()
        entry = self._names.get(name)
        if entry is not None and entry.versions[entry.current].digest == digest:
            return PutResult(entry.versions[entry.current], created=False, changed=False)
        number = 1 if entry is None else max(entry.versions) + 1
        version = AdapterVersion(number, digest, None, source, CREATED + number, _facts(digest))
        versions = {number: version} if entry is None else {**entry.versions, number: version}
        self._names[name] = _Name(versions, number, pin=pin)
        self._serve(name)
        return PutResult(version, created=entry is None, changed=True)

    def _serve(self, name: str) -> None:
        entry = self._names[name]
        models = {
            number: ServedModel(
                name, version.source.location, version.digest, version=number, created=int(CREATED)
            )
            for number, version in entry.versions.items()
        }
        self.catalog.put(name, models, entry.current)

    async def delete(self, name: str, wait: float) -> RemovalResult:
        self._entry(name)
        self.waits.append(wait)
        del self._names[name]
        self.catalog.remove(name)
        leases = self.num_requests.get(name, 0)
        freed = None if leases else FreedAdapter(device_bytes=2_000_000, host_bytes=1_500_000)
        return RemovalResult(name, done=not leases, leases=leases, freed=freed)

    async def rollback(self, name: str, number: int | None = None) -> PutResult:
        entry = self._entry(name)
        target = number or max((n for n in entry.versions if n < entry.current), default=0)
        if target not in entry.versions:
            raise ApiError("There is no such version.", status=404, code="version_not_found")
        changed, entry.current = entry.current != target, target
        self._serve(name)
        return PutResult(entry.versions[target], created=False, changed=changed)

    async def get(self, name: str) -> AdapterState:
        entry = self._entry(name)
        version = entry.versions[entry.current]
        return AdapterState(
            name=name,
            version=version,
            versions=tuple(entry.versions),
            report=AdapterReport(
                digest=version.digest,
                rank=16,
                tier=entry.tier,
                device_bytes=2_000_000,
                host_bytes=1_500_000,
                num_loads=3,
            ),
            pin=entry.pin,
            leases=self.num_requests.get(name, 0),
            aliases=tuple(
                alias
                for alias, state in self._aliases.items()
                if any(target.adapter == name for target in state.targets)
            ),
            error=None,
        )

    async def list(self) -> Any:
        return [await self.get(name) for name in self._names]

    def versions(self, name: str) -> Any:
        return list(self._entry(name).versions.values())

    async def pin(self, name: str, tier: PinTier) -> AdapterState:
        self._entry(name).pin = tier
        return await self.load(name, tier)

    async def unpin(self, name: str) -> AdapterState:
        self._entry(name).pin = None
        return await self.get(name)

    async def load(self, name: str, tier: PinTier) -> AdapterState:
        if self.failure is not None:
            raise self.failure
        self._entry(name).tier = tier
        return await self.get(name)

    async def evict(self, name: str, tier: PinTier) -> AdapterState:
        entry = self._entry(name)
        if entry.pin is not None:
            raise ApiError(f"The adapter {name!r} is pinned.", status=409, code="adapter_pinned")
        entry.tier = "host" if tier == "device" else "disk"
        return await self.get(name)

    async def put_alias(self, alias: str, targets: Sequence[AliasTarget]) -> AliasState:
        check_targets(targets)
        for target in targets:
            if target.adapter not in self._names:
                raise not_there(target.adapter, "adapter", "targets")
            if target.version not in (None, *self._names[target.adapter].versions):
                raise ApiError(
                    f"targets: {target.adapter!r} has no version {target.version}",
                    status=404,
                    param="targets",
                    code="version_not_found",
                )
        if alias in self._names:
            raise ApiError(
                f"{alias!r} is an adapter.", status=409, param="alias", code="name_taken"
            )
        before = self._aliases.get(alias)
        previous = None if before is None else before.targets
        state = AliasState(name=alias, targets=tuple(targets), previous=previous, created=CREATED)
        self._aliases[alias] = state
        self.catalog.put_alias(alias, targets, int(CREATED))
        return state

    async def delete_alias(self, alias: str) -> None:
        del self._aliases[self._alias(alias).name]
        self.catalog.remove_alias(alias)

    async def rollback_alias(self, alias: str) -> AliasState:
        state = self._alias(alias)
        if state.previous is None:
            raise ApiError("There is nothing to go back to.", status=409, code="no_earlier_version")
        self._aliases[alias] = replace(state, targets=state.previous, previous=state.targets)
        return self._aliases[alias]

    def list_aliases(self) -> Any:
        return list(self._aliases.values())

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty directory of its own, gone at the end."""
        self.directory.mkdir()
        try:
            yield self.directory
        finally:
            shutil.rmtree(self.directory)

    def _entry(self, name: str) -> _Name:
        if name not in self._names:
            raise ApiError(
                f"There is no adapter {name!r}.", status=404, param="name", code="adapter_not_found"
            )
        return self._names[name]

    def _alias(self, alias: str) -> AliasState:
        if alias not in self._aliases:
            raise ApiError(
                f"There is no alias {alias!r}.", status=404, param="alias", code="alias_not_found"
            )
        return self._aliases[alias]


def _facts(digest: str) -> AdapterFacts:
    return AdapterFacts(
        digest=digest,
        rank=8,
        modules=("q_proj", "v_proj"),
        device_bytes=2_000_000,
        file_bytes=1_500_000,
    )
