"""The fleet's adapter versions at this replica: each put once, never changed, taken away again."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from ...gateway.fleet.versions import (
    FLEET_PREFIX,
    PinTier,
    PutVersion,
    VersionRemoval,
    VersionReport,
    is_fleet_name,
    version_id_of,
    wire_name,
)
from ...lora.errors import AdapterError
from ..adapters.manager import AdapterManager, AdapterState
from ..adapters.sources import AdapterSource
from ..catalog import Catalog
from ..errors import ApiError, bad_field
from .blob_intake import BlobIntake
from .blobs import Blob


class FleetVersions:
    """Speaks of versions by their ids; the manager has them under ``fleet/{id}``.

    ``clock`` is in seconds.
    """

    def __init__(
        self,
        manager: AdapterManager,
        catalog: Catalog,
        intake: BlobIntake,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._catalog = catalog
        self._intake = intake
        self._clock = clock
        self._put_at: dict[str, float] = {}
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after a version was put or deleted."""
        self._listeners.append(listener)

    async def put(self, put: PutVersion) -> VersionReport:
        """Have a version here, whether it was before or not.

        Raises AdapterError for what is refused, ApiError 404 for an archive that nobody has, 409
        where other bytes came than asked for; then nothing of it stays.
        """
        known = put.version_id
        if known is not None and self._is_served(known):
            return await self._finish(known, put.pin, None)
        blob, source = await self._obtain(put)
        blobs = self._intake.blobs
        try:
            with blobs.hold(blob.sha256):
                version_id = await self._put_blob(blob, put.version_id)
        except (AdapterError, ApiError) as error:
            if isinstance(error, AdapterError) or error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                blobs.discard(blob.sha256)
            raise
        return await self._finish(version_id, put.pin, source)

    async def _put_blob(self, blob: Blob, expected: str | None) -> str:
        def name_of(digest: str, text_digest: str | None) -> str:
            version_id = version_id_of(digest, text_digest)
            if expected not in (None, version_id):
                raise ApiError(
                    "source: holds another adapter by now",
                    status=409,
                    param="source",
                    code="source_changed",
                )
            self._put_at[version_id] = self._clock()
            return wire_name(version_id)

        name = await self._manager.put_by_content(AdapterSource("blob", blob.sha256), name_of)
        return name.removeprefix(FLEET_PREFIX)

    async def _finish(
        self, version_id: str, pin: PinTier | None, source: AdapterSource | None
    ) -> VersionReport:
        self._put_at[version_id] = self._clock()
        name = wire_name(version_id)
        self._tell()
        state = await (self._manager.pin(name, pin) if pin else self._manager.get(name))
        return _report(state, source)

    async def _obtain(self, put: PutVersion) -> tuple[Blob, AdapterSource | None]:
        """The archive: from here, from a peer, from its source."""
        blob = None if put.blob is None else self._intake.blobs.get(put.blob)
        if blob is None and put.version_id is not None:
            path = f"/fleet/versions/{put.version_id}/archive"
            blob = await self._intake.pull(put.peers, path, None)
        if blob is None and put.blob is not None:
            blob = await self._intake.pull(put.peers, f"/fleet/blobs/{put.blob}", put.blob)
        if blob is not None:
            return blob, None
        if put.source is not None:
            return await self._intake.fetch(put.source)
        if put.blob is None and put.version_id is None:
            raise bad_field("blob", "one of blob, source and version_id is needed")
        raise ApiError(
            "Neither this replica nor a peer has that archive.", status=404, code="blob_not_found"
        )

    async def get(self, version_id: str) -> VersionReport:
        """One version; raises ApiError 404."""
        return _report(await self._manager.get(wire_name(version_id)))

    async def list(self) -> list[VersionReport]:
        """All versions."""
        return [_report(s) for s in await self._manager.list() if is_fleet_name(s.name)]

    def archive(self, version_id: str) -> Blob:
        """What a version was made of; raises ApiError 404."""
        blob = None
        if wire_name(version_id) in self._catalog.adapter_names:
            source = self._manager.versions(wire_name(version_id))[-1].source
            blob = self._intake.blobs.get(source.location)
        if blob is None:
            raise ApiError("That version is not here.", status=404, code="blob_not_found")
        return blob

    async def delete(self, version_id: str, wait: float, min_age: float) -> VersionRemoval:
        """Forget a version; ``wait`` seconds at most for its memory.

        Raises ApiError 404, and 409 for one that was put within ``min_age`` seconds: whoever asks
        does not know yet what it was put for.
        """
        age = self._clock() - self._put_at.get(version_id, -float("inf"))
        if age < min_age:
            raise ApiError(
                "That version was put only now.", status=409, code="version_put_recently"
            )
        blob = self._manager.versions(wire_name(version_id))[-1].source.location
        result = await self._manager.delete(wire_name(version_id), wait)
        self._put_at.pop(version_id, None)
        self._intake.blobs.discard(blob)
        self._tell()
        freed = result.freed
        return VersionRemoval(
            done=result.done,
            requests=result.leases,
            freed_device_bytes=freed.device_bytes if freed else 0,
            freed_host_bytes=freed.host_bytes if freed else 0,
        )

    async def turn(self, version_id: str, verb: str, tier: PinTier) -> VersionReport:
        """``load``, ``evict``, ``pin``, ``unpin``: as an admin does it with a name."""
        manager, name = self._manager, wire_name(version_id)
        match verb:
            case "load":
                state = await manager.load(name, tier)
            case "evict":
                state = await manager.evict(name, tier)
            case "pin":
                state = await manager.pin(name, tier)
            case _:
                state = await manager.unpin(name)
        return _report(state)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _is_served(self, version_id: str) -> bool:
        name = wire_name(version_id)
        return name in self._catalog.adapter_names and self._catalog.can_serve(name)


def blobs_of(manager: AdapterManager, catalog: Catalog) -> set[str]:
    """Archives that versions were made of, and are made of again when need be."""
    return {
        version.source.location
        for name in catalog.adapter_names
        if is_fleet_name(name)
        for version in manager.versions(name)
    }


def _report(state: AdapterState, source: AdapterSource | None = None) -> VersionReport:
    version, facts, report = state.version, state.version.facts, state.report
    return VersionReport(
        version_id=version_id_of(version.digest, version.text_digest),
        digest=version.digest,
        text_digest=version.text_digest,
        blob=version.source.location,
        rank=facts.rank,
        modules=list(facts.modules),
        device_bytes=report.device_bytes if report else facts.device_bytes,
        host_bytes=report.host_bytes if report else facts.file_bytes,
        file_bytes=facts.file_bytes,
        uses_base_prefix=facts.uses_base_prefix,
        tier=report.tier if report else None,
        is_loading=report is not None and report.is_loading,
        pin=state.pin,
        leases=state.leases,
        last_used=report.last_used if report else None,
        loads=report.num_loads if report else 0,
        evictions=report.num_evictions if report else 0,
        error=state.error or (report.error if report else None),
        source_kind=source.kind if source else None,
        source=source.location if source else None,
    )
