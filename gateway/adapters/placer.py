"""Keeps versions on the replicas where they belong, as demand, names and replicas change.

All gateways do this, without a leader: every action may be done twice. For each one gateway goes
first, chosen by rendezvous, and the others only follow where nothing has come of it.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..fleet.records import GatewayReport
from ..fleet.versions import FLEET_PREFIX, is_fleet_name
from ..types import FleetSnapshot, ReplicaView
from .bringing import Bringer
from .demand import DemandMeter
from .placement import Copies, Membership, Placement, Ranking, next_copies, plan, ranked
from .records import AdapterVersion
from .registry import Registry, Wanted
from .replica_client import ReplicaFailed

TICK_SECONDS = 1.0
MAX_SHARE = 0.005
"""Of the event loop's time: requests wait for whoever has it."""
MAX_PARALLEL = 4
FOLLOW_SECONDS = 15.0
"""After so long without the gateway whose turn it is, any gateway acts."""
SURPLUS_SECONDS = 120.0
UNNEEDED_SECONDS = 60.0
"""How long a version stays that no name needs any more: streams may have to move with it."""
UNKNOWN_SECONDS = 3600.0
"""The same for one that this gateway has never known: its store may not know all yet."""
MIN_AGE_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 60.0

logger = logging.getLogger(__name__)

_Key = tuple[str, str]
"""A version and a replica."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Tried so often in vain; not again before ``until``."""

    num_times: int
    until: float


class Placer:
    """One gateway's share of the work. ``clock`` is in seconds."""

    def __init__(
        self,
        registry: Registry,
        bringer: Bringer,
        demand: DemandMeter,
        gateway_id: str,
        gateways: Callable[[], Mapping[str, GatewayReport]],
        snapshot: Callable[[], FleetSnapshot],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._bringer = bringer
        self._demand = demand
        self._gateway_id = gateway_id
        self._gateways = gateways
        self._snapshot = snapshot
        self._clock = clock
        self._members = Membership()
        self._ranking = Ranking()
        self._copies: dict[str, Copies] = {}
        self._since: dict[tuple[str, str, str], float] = {}
        self._failures: dict[_Key, _Failure] = {}
        self._dropped: dict[str, tuple[AdapterVersion, float]] = {}
        self._last_wanted: Mapping[str, Wanted] = {}
        self._room = asyncio.Semaphore(MAX_PARALLEL)
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    def version_of(self, version_id: str) -> AdapterVersion | None:
        """A version that is kept, or that was until a moment ago."""
        wanted = self._registry.wanted().get(version_id)
        if wanted is None:
            wanted = self._last_wanted.get(version_id)
        if wanted is not None:
            return wanted.version
        dropped = self._dropped.get(version_id)
        return None if dropped is None else dropped[0]

    def drop(self, version: AdapterVersion) -> None:
        """Note a version that was put for nothing, or whose name is gone."""
        if version.version_id not in self._registry.wanted():
            self._dropped[version.version_id] = (version, self._clock())

    def placements(self) -> list[Placement]:
        """Where everything that is kept belongs now."""
        now, snapshot = self._clock(), self._snapshot()
        up = [replica.replica_id for replica in snapshot.replicas if replica.is_up]
        leaving = [r.replica_id for r in snapshot.replicas if r.report.state == "draining"]
        members = self._members.update(up, leaving, now)
        counts = self._count(len(members), now)
        self._ranking.keep(counts)
        return plan(counts, members, _holders(snapshot), self._ranking)

    async def run(self) -> None:
        """Look once a second, less often where looking takes long, until cancelled."""
        try:
            while True:
                since = time.perf_counter()
                try:
                    self.tick()
                except Exception:
                    logger.exception("adapters could not be placed")
                seconds = time.perf_counter() - since
                await asyncio.sleep(max(TICK_SECONDS, seconds / MAX_SHARE))
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def tick(self) -> None:
        """Begin what has to be done; it goes on in the background."""
        now = self._clock()
        self._note_dropped(now)
        replicas = {replica.replica_id: replica for replica in self._snapshot().replicas}
        due: set[tuple[str, str, str]] = set()
        for placement in self.placements():
            for replica_id in placement.missing:
                due.add(("missing", placement.version_id, replica_id))
            if not placement.missing:
                due |= {("surplus", placement.version_id, one) for one in placement.surplus}
        due |= self._unneeded(replicas.values())
        self._since = {entry: self._since.get(entry, now) for entry in due}
        for (what, version_id, replica_id), since in self._since.items():
            replica = replicas.get(replica_id)
            if replica is not None and replica.is_up:
                self._act(what, version_id, replica, now - since)

    async def settled(self) -> None:
        """Wait for all that has begun; for tests."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _count(self, num_members: int, now: float) -> dict[str, int]:
        capacity, told = self._capacity(), self._told_demand()
        copies: dict[str, Copies] = {}
        for version_id, wanted in self._registry.wanted().items():
            demand = told.get(version_id, 0.0) if wanted.is_serving else 0.0
            before = self._copies.get(version_id)
            copies[version_id] = next_copies(before, demand, capacity, num_members, now)
        self._copies = copies
        return {version_id: entry.count for version_id, entry in copies.items()}

    def _capacity(self) -> float:
        """What a replica can do, in tokens a second; 0 while none has said."""
        speeds = [r.report.prefill_tokens_per_second for r in self._snapshot().replicas if r.is_up]
        known = [speed for speed in speeds if speed > 0]
        return statistics.median(known) if known else 0.0

    def _told_demand(self) -> dict[str, float]:
        """What all gateways together see asked for; our own as it is now."""
        total = self._demand.busiest()
        for gateway_id, report in self._gateways().items():
            if gateway_id != self._gateway_id:
                for version_id, rate in report.adapter_demand.items():
                    total[version_id] = total.get(version_id, 0.0) + rate
        return total

    def _note_dropped(self, now: float) -> None:
        wanted = self._registry.wanted()
        for version_id, entry in self._last_wanted.items():
            if version_id not in wanted:
                self._dropped[version_id] = (entry.version, now)
        self._last_wanted = wanted
        self._dropped = {
            version_id: entry
            for version_id, entry in self._dropped.items()
            if version_id not in wanted and now - entry[1] < UNKNOWN_SECONDS
        }

    def _unneeded(self, replicas: Iterable[ReplicaView]) -> set[tuple[str, str, str]]:
        wanted = self._registry.wanted()
        found: set[tuple[str, str, str]] = set()
        for replica in replicas:
            for name in replica.places:
                version_id = name.removeprefix(FLEET_PREFIX)
                if not is_fleet_name(name) or version_id in wanted:
                    continue
                if version_id in self._dropped:
                    found.add(("dropped", version_id, replica.replica_id))
                elif wanted:  # an empty registry is rather one that is lost
                    found.add(("unknown", version_id, replica.replica_id))
        return found

    def _act(self, what: str, version_id: str, replica: ReplicaView, age: float) -> None:
        key = (version_id, replica.replica_id)
        failure = self._failures.get(key)
        if key in self._tasks or (failure is not None and failure.until > self._clock()):
            return
        waits = {
            "missing": 0.0,
            "surplus": SURPLUS_SECONDS,
            "dropped": UNNEEDED_SECONDS,
            "unknown": UNKNOWN_SECONDS,
        }
        if age < waits[what] + (0.0 if self._has_turn(key) else FOLLOW_SECONDS):
            return
        work = self._bring if what == "missing" else self._forget
        task = asyncio.create_task(work(version_id, replica))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def _has_turn(self, key: _Key) -> bool:
        gateways = {*self._gateways(), self._gateway_id}
        return ranked(" ".join(key), gateways)[0] == self._gateway_id

    async def _bring(self, version_id: str, replica: ReplicaView) -> None:
        async with self._room:
            wanted = self._registry.wanted().get(version_id)
            if wanted is None:
                return
            try:
                await self._bringer.bring(wanted.version, replica, wanted.pin)
            except ReplicaFailed as error:
                self._note_failure((version_id, replica.replica_id), error)
            else:
                self._failures.pop((version_id, replica.replica_id), None)

    async def _forget(self, version_id: str, replica: ReplicaView) -> None:
        async with self._room:
            results = await self._bringer.forget(
                version_id, [replica], wait=0, min_age=MIN_AGE_SECONDS
            )
        for result in results:
            if isinstance(result, Exception):
                self._note_failure((version_id, replica.replica_id), result)

    def _note_failure(self, key: _Key, error: Exception) -> None:
        before = self._failures.get(key)
        num_times = 1 if before is None else before.num_times + 1
        seconds = min(MAX_BACKOFF_SECONDS, 2.0**num_times)
        self._failures[key] = _Failure(num_times, self._clock() + seconds)
        logger.warning("adapter version %s at replica %s: %s", *key, error)
        if len(self._failures) > 10_000:
            self._failures.clear()


def _holders(snapshot: FleetSnapshot) -> dict[str, set[str]]:
    holders: dict[str, set[str]] = {}
    for replica in snapshot.replicas:
        for name, place in replica.places.items():
            if is_fleet_name(name) and place.error is None:
                holders.setdefault(name.removeprefix(FLEET_PREFIX), set()).add(replica.replica_id)
    return holders
