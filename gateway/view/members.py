"""The fleet's members as they were last seen, with our own requests there; told the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..fleet.records import AdapterPlace, AdapterPlaces, GatewayReport, ReplicaLoad, ReplicaReport
from ..types import FleetSnapshot, Outcome, ReplicaView
from .flight import Flight, FlightBook
from .health import Change, Health
from .lag import LagMeter
from .leases import Leases
from .rules import AGAINST_PATH, LOSES_STREAMS
from .sightings import Heard, PlacesVersion, Sightings

SAME_BEAT_SECONDS = 0.1
"""By how much the time of one beat may seem to differ between two looks."""
_NO_PLACES: Mapping[str, AdapterPlace] = MappingProxyType({})
_NO_LOAD = ReplicaLoad()


@dataclass(slots=True)
class Member:
    """One replica; ``made_at`` is when its report was, by our clock."""

    report: ReplicaReport
    made_at: float
    book: FlightBook
    places: Mapping[str, AdapterPlace] = field(default_factory=lambda: _NO_PLACES)
    places_version: PlacesVersion | None = None


class Members:
    """Takes in what was seen, and gives a snapshot that costs nothing while nothing changed."""

    def __init__(
        self,
        gateway_id: str,
        health: Health,
        clock: Callable[[], float],
        lag: LagMeter | None = None,
    ) -> None:
        self.health = health
        self._lag = lag or LagMeter(clock)
        self._gateway_id = gateway_id
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._gateways: dict[str, GatewayReport] = {}
        self._gateway_leases = Leases()
        self._other_loads: dict[str, ReplicaLoad] = {}
        self._views: dict[str, ReplicaView] = {}
        self._changed: set[str] = set()
        self._snapshot = FleetSnapshot()
        self._listeners: list[Callable[[Change], None]] = []

    def subscribe(self, listener: Callable[[Change], None]) -> None:
        """Tell it who went out and who came back, in the middle of things: it must not wait."""
        self._listeners.append(listener)

    def take(self, sightings: Sightings, probing: Collection[str] = ()) -> None:
        """Take in one look; ``probing`` are replicas whose probe is under way."""
        now = self._clock()
        ages = {replica_id: heard.age for replica_id, heard in sightings.replicas.items()}
        self.health.leases.look(now, ages, self._lag.take())
        for heard in sightings.replicas.values():
            self._hear(now, heard, probing)
        for replica_id, places in sightings.places.items():
            self._place(replica_id, places)
        if sightings.gateways is not None:
            self._hear_gateways(now, sightings.gateways)
        for change in self.health.review(now):
            self._apply(change)
        self._forget()
        self._changed.update(self._members)

    def begin(self, replica_id: str, num_prefill_tokens: int) -> Flight:
        """A request leaves for a replica now; where there is none any more, it is lost at once."""
        member = self._members.get(replica_id)
        book = self._book(replica_id) if member is None else member.book
        flight = book.begin(num_prefill_tokens, self.health.generation(replica_id))
        reason = self.health.out_reason(replica_id)
        if reason is not None and reason in LOSES_STREAMS:
            flight.lose(reason)
        return flight

    def probed(self, replica_id: str, generation: int, outcome: Outcome) -> None:
        """A probe that was sent in that generation ended."""
        if outcome in AGAINST_PATH and self._lag.was_late:
            return
        change = self.health.probed(self._clock(), replica_id, generation, outcome)
        if change is not None:
            self._apply(change)

    def snapshot(self) -> FleetSnapshot:
        """All members now, in the order of their ids."""
        if self._changed:
            now = self._clock()
            for replica_id in self._changed & self._members.keys():
                self._views[replica_id] = self._view(now, replica_id)
            self._changed.clear()
            self._snapshot = FleetSnapshot(tuple(self._views[one] for one in sorted(self._views)))
        return self._snapshot

    def loads(self) -> dict[str, ReplicaLoad]:
        """What this gateway has on the way, of replicas where that is something."""
        loads = {replica_id: member.book.load for replica_id, member in self._members.items()}
        return {replica_id: load for replica_id, load in loads.items() if load != _NO_LOAD}

    def reports(self) -> list[ReplicaReport]:
        """The last of every member."""
        return [member.report for member in self._members.values()]

    def gateways(self) -> Mapping[str, GatewayReport]:
        """Those that live, others than this one."""
        return self._gateways

    def known_places(self) -> dict[str, PlacesVersion]:
        """What was last read of each member's adapters."""
        members = self._members.items()
        return {one: member.places_version for one, member in members if member.places_version}

    def silent_for(self, seconds: float) -> list[ReplicaReport]:
        """Members that were not heard for longer."""
        silence = self.health.leases.silence
        return [report for report in self.reports() if silence(report.replica_id) > seconds]

    def due_probes(self, under_way: Collection[str]) -> list[tuple[ReplicaReport, int]]:
        """Whom to probe now, and the generation that the outcome is of."""
        due = self.health.due_probes(self._clock(), under_way)
        return [(self._members[one].report, self.health.generation(one)) for one in due]

    def check(self) -> None:
        """What is counted is what is under way."""
        for member in self._members.values():
            member.book.check()

    def _hear(self, now: float, heard: Heard[ReplicaReport], probing: Collection[str]) -> None:
        report, made_at = heard.report, now - max(heard.age, 0.0)
        replica_id = report.replica_id
        member = self._members.get(replica_id)
        if member is None:
            member = Member(report, made_at, self._book(replica_id))
            self._members[replica_id] = member
        elif made_at < member.made_at + (SAME_BEAT_SECONDS if _is_same(report, member) else 0.0):
            # Of two ways to look, one may be behind the other; and a beat is taken in once.
            return
        member.report, member.made_at = report, made_at
        member.book.reported(made_at, report.p99_step_seconds)
        has_work = member.book.num_unanswered > 0 or replica_id in probing
        change = self.health.heard(now, report, made_at, has_work)
        if change is not None:
            self._apply(change)

    def _place(self, replica_id: str, places: AdapterPlaces) -> None:
        member = self._members.get(replica_id)
        if member is not None and places.epoch == member.report.epoch:
            by_name = {place.name: place for place in places.places}
            member.places = MappingProxyType(by_name)
            member.places_version = (places.epoch, places.version)

    def _hear_gateways(self, now: float, heard: Mapping[str, Heard[GatewayReport]]) -> None:
        others = {one: got for one, got in heard.items() if one != self._gateway_id}
        leases = self._gateway_leases
        leases.look(now, {one: got.age for one, got in others.items()})
        self._gateways.update({one: got.report for one, got in others.items()})
        limit = self.health.rules.lease_seconds
        silent = [one for one in leases.members() if leases.silence(one) > limit]
        leases.forget(silent)
        for gateway_id in silent:
            self._gateways.pop(gateway_id, None)
        self._other_loads = _sum_loads(self._gateways.values())

    def _forget(self) -> None:
        limit = self.health.rules.forget_seconds
        for report in self.silent_for(limit):
            replica_id = report.replica_id
            self._apply(Change("out", replica_id, "gone"))
            self.health.forget([replica_id])
            del self._members[replica_id]
            self._views.pop(replica_id, None)
            self._changed.add(replica_id)

    def _apply(self, change: Change) -> None:
        member = self._members.get(change.replica_id)
        self._changed.add(change.replica_id)
        if change.kind == "out" and change.reason in LOSES_STREAMS and member is not None:
            member.book.lose(change.reason)
        for listener in self._listeners:
            listener(change)

    def _view(self, now: float, replica_id: str) -> ReplicaView:
        member = self._members[replica_id]
        return ReplicaView(
            report=member.report,
            places=member.places,
            load=_add(member.book.load, self._other_loads.get(replica_id, _NO_LOAD)),
            warmth=self.health.warmth(now, replica_id),
            out_reason=self.health.out_reason(replica_id),
        )

    def _book(self, replica_id: str) -> FlightBook:
        return FlightBook(replica_id, self._clock, self._changed.add, self._ended)

    def _ended(self, flight: Flight, outcome: Outcome) -> None:
        if outcome in AGAINST_PATH and self._lag.was_late:
            return
        change = self.health.note(self._clock(), flight.replica_id, flight.generation, outcome)
        if change is not None:
            self._apply(change)


def _is_same(report: ReplicaReport, member: Member) -> bool:
    return (report.epoch, report.beat) == (member.report.epoch, member.report.beat)


def _sum_loads(reports: Iterable[GatewayReport]) -> dict[str, ReplicaLoad]:
    num_requests: Counter[str] = Counter()
    num_prefill_tokens: Counter[str] = Counter()
    for report in reports:
        for replica_id, load in report.loads.items():
            num_requests[replica_id] += max(load.num_requests, 0)
            num_prefill_tokens[replica_id] += max(load.num_prefill_tokens, 0)
    return {
        one: ReplicaLoad(num_requests=count, num_prefill_tokens=num_prefill_tokens[one])
        for one, count in num_requests.items()
    }


def _add(one: ReplicaLoad, other: ReplicaLoad) -> ReplicaLoad:
    if other is _NO_LOAD:
        return one
    return ReplicaLoad(
        num_requests=one.num_requests + other.num_requests,
        num_prefill_tokens=one.num_prefill_tokens + other.num_prefill_tokens,
    )
