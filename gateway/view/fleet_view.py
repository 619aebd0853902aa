"""What this gateway knows of the fleet: looks at it all the time, so that no request has to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..fleet.connection import RedisDown, RedisLink
from ..fleet.records import GatewayReport, ReplicaReport
from ..types import FleetSnapshot
from .direct_poller import DirectPoller
from .flight import Flight
from .health import Change, Health
from .lag import LagMeter
from .members import Members
from .prober import Prober
from .redis_poller import RedisPoller
from .rules import HealthRules

REDIS_SECONDS = 0.15
DIRECT_SECONDS = 0.25
PROBE_SECONDS = 0.25
DOUBTED_AFTER_SECONDS = 1.0
"""Silence after which a replica is asked itself: perhaps only its own way to Redis is cut."""
MAX_PROBES = 16

_logger = logging.getLogger(__name__)


class KeyFollower(Protocol):
    """Keeps the index of prefix keys in step with the replicas that report."""

    async def poll(self, reports: Sequence[ReplicaReport], link: RedisLink | None) -> None:
        """Read what is new, through Redis or, without a link, at the replicas."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How the fleet is looked at; without ``redis`` its members are ``urls`` and nobody else."""

    direct: DirectPoller
    prober: Prober
    redis: RedisPoller | None = None
    urls: tuple[str, ...] = ()
    keys: KeyFollower | None = None


class FleetView:
    """A snapshot in memory, and the requests that this gateway has under way."""

    def __init__(
        self,
        gateway_id: str,
        url: str,
        ways: Ways,
        *,
        rules: HealthRules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway_id = gateway_id
        self._url = url
        self._ways = ways
        self._lag = LagMeter(clock)
        self._members = Members(gateway_id, Health(rules), clock, self._lag)
        self._demand: Callable[[], Mapping[str, float]] = dict
        self._beat = 0
        self._redis_answers = ways.redis is not None
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._keys_turn = asyncio.Lock()
        self.looked = asyncio.Event()

    def snapshot(self) -> FleetSnapshot:
        """All members as of the last look, and our loads as of now."""
        return self._members.snapshot()

    def begin(self, replica_id: str, num_prefill_tokens: int) -> Flight:
        """A request leaves now; its uncached prompt tokens count until its first byte."""
        return self._members.begin(replica_id, num_prefill_tokens)

    def subscribe(self, listener: Callable[[Change], None]) -> None:
        """Tell it who went out, why, and who came back; it must not wait."""
        self._members.subscribe(listener)

    def tell_demand(self, demand: Callable[[], Mapping[str, float]]) -> None:
        """What this gateway's reports say of adapters asked for."""
        self._demand = demand

    def gateways(self) -> Mapping[str, GatewayReport]:
        """Those that live, as last heard before Redis went away, and this one."""
        return {**self._members.gateways(), self._gateway_id: self._own_report()}

    @property
    def num_gateways(self) -> int:
        """How many share the fleet, this one included."""
        return len(self._members.gateways()) + 1

    @property
    def redis_state(self) -> Literal["up", "away", "none"]:
        """Whether the last look through Redis found anything."""
        if self._ways.redis is None:
            return "none"
        return "up" if self._redis_answers else "away"

    async def run(self) -> None:
        """Look and probe until cancelled."""
        rounds = {self.look_at_replicas: DIRECT_SECONDS, self._start_probes: PROBE_SECONDS}
        if self._ways.redis is not None:
            rounds[self.look_through_redis] = REDIS_SECONDS
        try:
            async with asyncio.TaskGroup() as tasks:
                for look, seconds in rounds.items():
                    tasks.create_task(_repeat(look, seconds))
                tasks.create_task(self._lag.run())
        finally:
            for task in self._probing.values():
                task.cancel()
            await asyncio.gather(*self._probing.values(), return_exceptions=True)

    async def look_through_redis(self) -> None:
        """One look at all, which also says how we stand."""
        poller = self._ways.redis
        if poller is None:
            return
        self._beat += 1
        try:
            sightings = await poller.poll(self._own_report(), self._members.known_places())
        except RedisDown:
            self._redis_answers = False
            return
        except Exception:
            self._redis_answers = False
            raise
        self._redis_answers = True
        self._members.take(sightings, self._probing)
        self.looked.set()
        await self._follow_keys(poller.link)

    async def look_at_replicas(self) -> None:
        """Ask static members, silent ones, and everyone while Redis is away."""
        urls = set(self._ways.urls)
        if self._redis_answers:
            asked = self._members.silent_for(DOUBTED_AFTER_SECONDS)
        else:
            asked = self._members.reports()
        urls.update(report.url for report in asked)
        if not urls:
            return
        sightings = await self._ways.direct.poll(sorted(urls), self._members.known_places())
        self._members.take(sightings, self._probing)
        self.looked.set()
        if not self._redis_answers:
            await self._follow_keys(None)

    async def _follow_keys(self, link: RedisLink | None) -> None:
        if self._ways.keys is not None:
            async with self._keys_turn:
                await self._ways.keys.poll(self._members.reports(), link)

    def _own_report(self) -> GatewayReport:
        return GatewayReport(
            gateway_id=self._gateway_id,
            url=self._url,
            beat=self._beat,
            loads=self._members.loads(),
            adapter_demand=dict(self._demand()),
        )

    async def _start_probes(self) -> None:
        for report, generation in self._members.due_probes(self._probing):
            if len(self._probing) >= MAX_PROBES:
                return
            task = asyncio.create_task(self._probe(report, generation))
            self._probing[report.replica_id] = task

    async def _probe(self, report: ReplicaReport, generation: int) -> None:
        try:
            outcome = await self._ways.prober.probe(report)
            self._members.probed(report.replica_id, generation, outcome)
        finally:
            del self._probing[report.replica_id]


async def _repeat(look: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Again and again; an error is logged and the next round tries anew.

    redis-py swallows a cancellation that comes while it connects, so each round asks for one.
    """
    task = asyncio.current_task()
    while task is not None and not task.cancelling():
        started = time.monotonic()
        try:
            await look()
        except Exception:
            _logger.exception("looking at the fleet failed")
        await asyncio.sleep(max(seconds - (time.monotonic() - started), seconds / 5))
