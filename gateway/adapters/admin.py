"""The verbs of the fleet's admin on adapters: what a server's are, done on all replicas at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import GatewayError, bad_field
from ..fleet.aliases import AliasTarget, problem_of_targets
from ..fleet.versions import PinTier, PutVersion, VersionReport
from ..types import FleetSnapshot, ReplicaView
from .asking import Candidates, no_replicas
from .bringing import Bringer, Held
from .directory import AdapterDirectory
from .fan_out import Uploaded, fan_out
from .names import check_new_name, not_there
from .placement import MIN_COPIES, ranked
from .placer import Placer
from .records import AdapterRecord, AdapterVersion, AliasRecord, Source
from .registry import Committed, Registry
from .removal import Removal, remove
from .replica_client import ReplicaClient, ReplicaFailed, ReplicaRefused
from .reports import Reports, reports_of

TOUCH_SECONDS = 1.0
UPLOAD = Source("upload", "upload")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PutResult:
    """What a put or a roll back has come to; ``changed`` False: it was so already."""

    created: bool
    changed: bool


class AdapterAdmin:
    """Changes the registry, once enough replicas hold what it will name.

    What is begun goes on to its end, whoever stops waiting for it. Raises GatewayError.
    """

    def __init__(
        self,
        registry: Registry,
        bringer: Bringer,
        client: ReplicaClient,
        directory: AdapterDirectory,
        placer: Placer,
        snapshot: Callable[[], FleetSnapshot],
    ) -> None:
        self.registry = registry
        self._bringer = bringer
        self._client = client
        self._directory = directory
        self._placer = placer
        self._snapshot = snapshot
        self._tasks: set[asyncio.Task[Any]] = set()

    def check_name(self, name: str, field: str = "name") -> None:
        """Raise GatewayError for a name that nobody may take."""
        check_new_name(name, self._directory.base_names(self._snapshot()), field)
        if field == "name" and self.registry.alias(name) is not None:
            raise GatewayError(
                409, f"name: {name!r} is the name of an alias", param="name", code="name_taken"
            )

    async def put_source(self, name: str, source: str, pin: PinTier | None) -> PutResult:
        """Add an adapter or replace it, from where an admin's word leads a replica."""
        self.check_name(name)
        return await self._whole(self._put_source(name, source, pin))

    async def put_upload(
        self, name: str, chunks: AsyncIterator[bytes], content_type: str, pin: PinTier | None
    ) -> PutResult:
        """The same from an archive or a form, which streams through to replicas as it comes."""
        self.check_name(name)
        targets = self.candidates(name)[:MIN_COPIES]
        if not targets:
            raise no_replicas()
        uploaded = await fan_out(
            self._client, targets, chunks, content_type, self._bringer.standing
        )
        form_pin = _pin_of(uploaded.blob.fields)
        return await self._whole(self._put_blob(name, uploaded, targets, form_pin or pin))

    async def _put_source(self, name: str, source: str, pin: PinTier | None) -> PutResult:
        put = PutVersion(source=source, pin=pin or self._pin_of(name))

        def candidates() -> Sequence[ReplicaView]:
            return self.candidates(name)

        held = await self._bringer.first_of(candidates, put)
        kind, location = held.report.source_kind or "directory", held.report.source or source
        return await self._take_in(name, held, candidates, put, Source(kind, location), pin)

    async def _put_blob(
        self, name: str, uploaded: Uploaded, targets: Sequence[ReplicaView], pin: PinTier | None
    ) -> PutResult:
        blob, holders = uploaded.blob.sha256, uploaded.holders
        put = PutVersion(
            blob=blob,
            peers=[holder.report.url for holder in holders],
            pin=pin or self._pin_of(name),
        )
        # Who holds it comes first, and who failed on the way of the upload last.
        turns = {target.replica_id: 2 for target in targets}
        turns.update({holder.replica_id: 0 for holder in holders})

        def candidates() -> Sequence[ReplicaView]:
            return sorted(self.candidates(name), key=lambda one: turns.get(one.replica_id, 1))

        try:
            held = await self._bringer.first_of(candidates, put)
        except GatewayError:
            await asyncio.gather(*(self._client.drop_blob(h.report.url, blob) for h in holders))
            raise
        return await self._take_in(name, held, candidates, put, UPLOAD, pin)

    async def _take_in(
        self,
        name: str,
        held: Held,
        candidates: Candidates,
        put: PutVersion,
        source: Source,
        pin: PinTier | None,
    ) -> PutResult:
        """From the first replica to enough of them, and then into the registry."""
        since = time.monotonic()
        version = AdapterVersion.of(held.report, source, time.time())
        try:
            held = await self._bringer.spread(held, candidates, put)
            if time.monotonic() - since > TOUCH_SECONDS:
                # Who removes it elsewhere now is told that it is put anew.
                await self._bringer.touch(held)
            committed = await self.registry.put(name, version, pin)
        except GatewayError:
            self._placer.drop(version)
            raise
        self._follow_pins(committed)
        return PutResult(created=committed.before is None, changed=committed.changed)

    async def rollback(self, name: str, number: int | None) -> PutResult:
        """Make an older version current again, once enough replicas hold it."""
        version = self.registry.turned(name, number).current
        return await self._whole(self._rollback(name, number, version))

    async def _rollback(self, name: str, number: int | None, version: AdapterVersion) -> PutResult:
        await self._hold(version, self._pin_of(name))
        committed = await self.registry.rollback(name, number)
        self._follow_pins(committed)
        return PutResult(created=False, changed=committed.changed)

    async def delete(self, name: str, wait: float) -> Removal:
        """Forget a name at once; wait up to ``wait`` seconds until replicas have forgotten it."""
        committed = await self.registry.delete(name)
        assert committed.before is not None
        wanted = self.registry.wanted()
        gone = [v for v in committed.before.versions if v.version_id not in wanted]
        for version in gone:
            self._placer.drop(version)
        ids = [version.version_id for version in gone]
        return await remove(self._bringer, name, ids, wait)

    async def pin(self, name: str, tier: PinTier) -> None:
        """Pin the current version where it is held, and those that follow it."""
        await self.turn(name, "pin", tier)
        await self.registry.pin(name, tier)

    async def unpin(self, name: str) -> None:
        """End a pin."""
        committed = await self.registry.pin(name, None)
        self._follow_pins(committed)

    async def turn(self, name: str, verb: str, tier: PinTier) -> None:
        """``load`` or ``evict`` the current version, or pin it, on all replicas that hold it."""
        version = self._record(name).current
        await self._hold(version, None)
        results = await self._turn_all(version, verb, tier)
        errors = [result for result in results if isinstance(result, ReplicaFailed)]
        for error in errors:
            if isinstance(error, ReplicaRefused) and error.status != 404:
                raise error.as_answer()
        if len(errors) == len(results):
            raise no_replicas()

    async def reports(self, version: AdapterVersion | None = None) -> Reports:
        """What replicas say of one version, or of all."""
        return await reports_of(self._client, self._bringer.up(), version)

    def snapshot(self) -> FleetSnapshot:
        """The fleet as it is now."""
        return self._snapshot()

    async def put_alias(self, alias: str, targets: Sequence[AliasTarget]) -> AliasRecord:
        """Point an alias at adapters, once enough replicas hold what it names."""
        self.check_name(alias, "alias")
        if (problem := problem_of_targets(targets)) is not None:
            raise bad_field("targets", problem)
        versions = self.registry.versions_of(targets)
        return await self._whole(self._put_alias(alias, tuple(targets), versions))

    async def _put_alias(
        self, alias: str, targets: tuple[AliasTarget, ...], versions: Sequence[AdapterVersion]
    ) -> AliasRecord:
        for version in versions:
            await self._hold(version, None)
        return await self.registry.put_alias(alias, targets)

    async def rollback_alias(self, alias: str) -> AliasRecord:
        """Point an alias where it pointed before; raises GatewayError 409 without a before."""
        record = self.registry.alias(alias)
        if record is not None and record.previous is not None:
            for version in self.registry.versions_of(record.previous):
                await self._hold(version, None)
        return await self.registry.rollback_alias(alias)

    async def _hold(self, version: AdapterVersion, pin: PinTier | None) -> None:
        """Have a version on enough replicas; raises GatewayError 503."""

        def candidates() -> Sequence[ReplicaView]:
            have = {one.replica_id for one in self._bringer.holders(version.version_id)}
            everyone = self.candidates(version.version_id)
            return sorted(everyone, key=lambda one: one.replica_id not in have)

        await self._bringer.hold(version, candidates, pin)

    def candidates(self, key: str) -> list[ReplicaView]:
        """All replicas that are up, in an order of the key's own."""
        up = {replica.replica_id: replica for replica in self._bringer.up()}
        return [up[replica_id] for replica_id in ranked(key, up)]

    def _record(self, name: str) -> AdapterRecord:
        record = self.registry.adapter(name)
        if record is None:
            raise not_there(name, "adapter")
        return record

    def _pin_of(self, name: str) -> PinTier | None:
        record = self.registry.adapter(name)
        return None if record is None else record.pin

    async def _turn_all(
        self, version: AdapterVersion, verb: str, tier: PinTier
    ) -> list[VersionReport | BaseException]:
        calls = (
            self._client.turn(replica.report.url, version.version_id, verb, tier)
            for replica in (await self.reports(version)).replicas
        )
        return list(await asyncio.gather(*calls, return_exceptions=True))

    async def settled(self) -> None:
        """Wait for all that goes on behind callers' backs."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _follow_pins(self, committed: Committed) -> None:
        """Behind the caller's back: what is not pinned any more is told so."""
        if committed.before is None or committed.before.pin is None:
            return
        old = committed.before.current
        wanted = self.registry.wanted().get(old.version_id)
        if wanted is None or wanted.pin is None:
            self._background(self._turn_all(old, "unpin", "device"))

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._background(work))

    def _background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left


def _pin_of(fields: dict[str, str]) -> PinTier | None:
    """The pin of an upload's form; raises GatewayError for other fields."""
    for field in fields:
        if field != "pin":
            raise bad_field(field[:100], "is not a known field here", "unknown_parameter")
    return pin_of(fields.get("pin"))


def pin_of(text: str | None) -> PinTier | None:
    """A pin as a client writes it; raises GatewayError for what is none."""
    match text:
        case None:
            return None
        case "host":
            return "host"
        case "device":
            return "device"
        case _:
            raise bad_field("pin", "must be 'host' or 'device'", None)
