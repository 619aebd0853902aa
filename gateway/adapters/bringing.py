"""Versions on their way to replicas: one way for uploads, sources, cold requests and placement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeGuard

import msgspec

from ..fleet.versions import MAX_PEERS, PinTier, PutVersion, VersionReport, wire_name
from ..types import FleetSnapshot, ReplicaView
from .asking import SETTLE_SECONDS, Candidates, Patience, Tries, no_replicas
from .placement import MIN_COPIES
from .records import AdapterVersion
from .replica_client import ReplicaClient, ReplicaFailed, ReplicaRefused

WATCH_SECONDS = 0.5
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

    def standing(self, replica: ReplicaView) -> bool | None:
        """Whether a replica can still be asked; None: it is another process, or another's name."""
        now = {one.replica_id: one for one in self._snapshot().replicas}.get(replica.replica_id)
        if now is None:
            return False
        return now.is_up if _is_same(now, replica) else None

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
        if not candidates():
            raise no_replicas()
        tries = Tries(candidates, self._settle_seconds)
        while True:
            for replica in await tries.next(1):
                report = await self._try(replica, put)
                if report is not None:
                    return Held(report, (replica,))
                tries.failed(replica)

    async def spread(self, held: Held, candidates: Candidates, put: PutVersion) -> Held:
        """Have a version at enough replicas for it to count: two, or all that are up.

        As many are asked at once as are missing. The fleet may change meanwhile: who joined is
        asked too, who is lost neither counts nor is waited for. Raises GatewayError.
        """
        have = {replica.replica_id: replica for replica in held.replicas}
        tries = Tries(candidates, self._settle_seconds, have)
        while True:
            for replica in [one for one in have.values() if self.standing(one) is None]:
                del have[replica.replica_id]
                tries.forget(replica)
            alive = [replica for replica in have.values() if self.standing(replica)]
            num_missing = self._num_needed() - len(alive)
            if num_missing <= 0:
                return Held(held.report, tuple(alive))
            batch = await tries.next(num_missing)
            peers = dict.fromkeys([*(replica.report.url for replica in alive), *put.peers])
            more = msgspec.structs.replace(
                put, version_id=held.report.version_id, peers=[*peers][:MAX_PEERS]
            )
            calls = (self._try(replica, more) for replica in batch)
            results = await asyncio.gather(*calls, return_exceptions=True)
            for replica, result in zip(batch, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    tries.failed(replica)
                else:
                    have[replica.replica_id] = replica

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
        tries = Tries(candidates, self._settle_seconds)
        while num_held < self._num_needed():
            for replica in await tries.next(1):
                place = replica.places.get(name)
                if place is None or place.error is not None or pin is not None:
                    try:
                        await self.bring(version, replica, pin)
                    except ReplicaFailed:
                        tries.failed(replica)
                        continue
                num_held += 1

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
        patience = Patience(lambda: self.standing(replica))
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


def _is_same(one: ReplicaView, other: ReplicaView) -> bool:
    """Whether two views are of one process."""
    return (one.report.epoch, one.report.url) == (other.report.epoch, other.report.url)


def _is_final(result: object) -> TypeGuard[ReplicaRefused]:
    """Whether another replica would say the same."""
    return isinstance(result, ReplicaRefused) and result.code != "blob_not_found"


def _source_of(version: AdapterVersion) -> str | None:
    """Where a replica may fetch it again, should nobody have the archive."""
    return version.source.location if version.source.kind in _REFETCHED else None
