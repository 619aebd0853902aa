"""Versions on their way to replicas: one way for uploads, sources, cold requests and placement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeGuard

import msgspec

from ..errors import GatewayError
from ..fleet.versions import MAX_PEERS, PinTier, PutVersion, VersionReport, wire_name
from ..types import FleetSnapshot, ReplicaView
from .asking import Candidates, Patience, Tries
from .placement import MIN_COPIES
from .records import AdapterVersion
from .replica_client import ReplicaClient, ReplicaFailed, ReplicaRefused

WATCH_SECONDS = 0.5
SETTLE_SECONDS, AGAIN_SECONDS = 6.0, 0.5
"""How long, and how often, those are asked again that failed: a dead one is out by then."""
NO_REPLICA = "no_replica_holds_it"
_REFETCHED = ("directory", "hub", "http")


@dataclass(frozen=True, slots=True)
class Held:
    """A version, as the first replica made it, and all replicas that hold it."""

    report: VersionReport
    replicas: tuple[ReplicaView, ...]


class Bringer:
    """Has replicas hold versions. Two calls for one version at one replica are one.

    ``snapshot`` is the fleet as it is now.
    """

    def __init__(
        self,
        client: ReplicaClient,
        snapshot: Callable[[], FleetSnapshot],
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._client = client
        self._settle_seconds = settle_seconds
        self._snapshot = snapshot
        self._running: dict[tuple[str, str], asyncio.Task[VersionReport]] = {}

    def up(self) -> list[ReplicaView]:
        """Replicas that can be asked."""
        return [replica for replica in self._snapshot().replicas if replica.is_up]

    def is_up(self, replica: ReplicaView) -> bool:
        """Whether a replica can still be asked."""
        return any(other.replica_id == replica.replica_id for other in self.up())

    def holders(self, version_id: str) -> list[ReplicaView]:
        """Replicas that say they have a version; those that are up first."""
        name = wire_name(version_id)
        found = [replica for replica in self._snapshot().replicas if name in replica.places]
        return sorted(found, key=lambda replica: not replica.is_up)

    async def bring(
        self, version: AdapterVersion, replica: ReplicaView, pin: PinTier | None = None
    ) -> VersionReport:
        """Have a known version at a replica, which takes it from a peer or the source.

        Raises ReplicaFailed. Who stops waiting does not end it.
        """
        key = (replica.replica_id, version.version_id)
        task = self._running.get(key)
        if task is None:
            put = PutVersion(
                version_id=version.version_id,
                blob=version.blob,
                source=_source_of(version),
                peers=self._peers(version.version_id, replica),
                pin=pin,
            )
            task = asyncio.create_task(self._put(replica, put))
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[VersionReport]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # somebody may have left before it failed

    async def first_of(self, candidates: Candidates, put: PutVersion) -> Held:
        """Have a new version made at the first candidate that does not fail.

        Raises GatewayError: what the replica refuses, in its words; 503 where all fail.
        """
        tries = Tries(candidates)
        while batch := tries.next(1):
            report = await self._try(batch[0], put)
            if report is not None:
                return Held(report, (batch[0],))
        raise no_replicas()

    async def spread(self, held: Held, candidates: Candidates, put: PutVersion) -> Held:
        """Have a version at enough replicas for it to count: two, or all that are up.

        As many are asked at once as are missing. The fleet may change meanwhile: who joined is
        asked too, who is lost is not waited for, and for a while those that failed are asked
        again, since they may be up in name only. Raises GatewayError.
        """
        have, deadline = list(held.replicas), float("inf")
        tries = Tries(candidates, [replica.replica_id for replica in have])
        while (missing := self._num_needed() - len(have)) > 0:
            batch = tries.next(missing)
            if not batch:
                deadline = min(deadline, time.monotonic() + self._settle_seconds)
                if time.monotonic() >= deadline:
                    raise no_replicas()
                await asyncio.sleep(AGAIN_SECONDS)
                tries.again()
                continue
            peers = [replica.report.url for replica in have]
            more = msgspec.structs.replace(put, version_id=held.report.version_id, peers=peers)
            calls = (self._try(replica, more) for replica in batch)
            for replica, result in zip(
                batch, await asyncio.gather(*calls, return_exceptions=True), strict=True
            ):
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    tries.failed(replica)
                else:
                    have.append(replica)
        return Held(held.report, tuple(have))

    async def _try(self, replica: ReplicaView, put: PutVersion) -> VersionReport | None:
        """What a replica made of it, None if it failed; raises GatewayError if all would."""
        try:
            return await self._put(replica, put)
        except ReplicaFailed as error:
            if _is_final(error):
                raise error.as_answer() from error
            return None

    def _num_needed(self) -> int:
        """How many have to hold a version for it to count."""
        return min(MIN_COPIES, max(1, len(self.up())))

    async def hold(
        self, version: AdapterVersion, candidates: Candidates, pin: PinTier | None
    ) -> None:
        """Have a known version at enough replicas, holders first; raises GatewayError 503."""
        name, num_held = version.wire_name, 0
        tries = Tries(candidates)
        while num_held < MIN_COPIES and (batch := tries.next(1)):
            place = batch[0].places.get(name)
            if place is None or place.error is not None or pin is not None:
                try:
                    await self.bring(version, batch[0], pin)
                except ReplicaFailed:
                    continue
            num_held += 1
        if num_held < self._num_needed():
            raise no_replicas()

    async def touch(self, held: Held) -> None:
        """Tell replicas that hold a version that it is wanted; raises GatewayError 503."""
        put = PutVersion(version_id=held.report.version_id, blob=held.report.blob)
        calls = (self._put(replica, put) for replica in held.replicas)
        results = await asyncio.gather(*calls, return_exceptions=True)
        if all(isinstance(result, BaseException) for result in results):
            raise no_replicas()

    async def forget(
        self, version_id: str, replicas: Iterable[ReplicaView], *, wait: float, min_age: float
    ) -> list[object]:
        """Have replicas forget a version: of each its removal, or the error."""
        calls = (
            self._client.delete_version(replica.report.url, version_id, wait=wait, min_age=min_age)
            for replica in replicas
        )
        return list(await asyncio.gather(*calls, return_exceptions=True))

    async def _put(self, replica: ReplicaView, put: PutVersion) -> VersionReport:
        """Have a version at a replica, which may take long, for as long as it is up."""
        call = asyncio.create_task(self._client.put_version(replica.report.url, put))
        patience = Patience(lambda: self.is_up(replica))
        try:
            while not call.done():
                await asyncio.wait({call}, timeout=WATCH_SECONDS)
                if not call.done() and patience.is_over():
                    raise ReplicaFailed("it went out meanwhile")
            return call.result()
        finally:
            call.cancel()

    def _peers(self, version_id: str, replica: ReplicaView) -> list[str]:
        holders = self.holders(version_id)
        urls = [h.report.url for h in holders if h.replica_id != replica.replica_id]
        return urls[:MAX_PEERS]


def _is_final(result: object) -> TypeGuard[ReplicaRefused]:
    """Whether another replica would say the same."""
    return isinstance(result, ReplicaRefused) and result.code != "blob_not_found"


def _source_of(version: AdapterVersion) -> str | None:
    """Where a replica may fetch it again, should nobody have the archive."""
    return version.source.location if version.source.kind in _REFETCHED else None


def no_replicas() -> GatewayError:
    """503: too few replicas are there for it."""
    return GatewayError(
        503,
        "Not enough replicas could take the adapter; nothing has changed.",
        code=NO_REPLICA,
        headers={"retry-after": "1"},
    )
