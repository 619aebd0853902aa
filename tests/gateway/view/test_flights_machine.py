"""A fleet's life at random: loads are conserved, streams are lost once, clients eject nobody."""

from __future__ import annotations

from typing import Any

from fleet_values import FakeClock, report, seen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.gateway.fleet.records import GatewayReport, ReplicaLoad
from branchline.gateway.types import Outcome
from branchline.gateway.view.flight import Flight
from branchline.gateway.view.health import Change, Health
from branchline.gateway.view.members import Members
from branchline.gateway.view.rules import AGAINST, LOSES_STREAMS
from branchline.gateway.view.sightings import Heard

NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
OUTCOMES: tuple[Outcome, ...] = (
    *("ok", "refused", "client_left", "overloaded"),
    *("failed", "unreachable", "stalled"),
)


class Fleet(RuleBasedStateMachine):
    """Three replicas, one other gateway, any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.members = Members("g1", Health(seed=1), self.clock)
        self.changes: list[Change] = []
        self.members.subscribe(self.note_change)
        self.flights: list[Flight] = []
        self.reasons: dict[Flight, str] = {}
        self.beats = 0
        self.epochs = dict.fromkeys(NAMES, 1)
        self.progress = dict.fromkeys(NAMES, 0)
        self.spoke_against = dict.fromkeys(NAMES, False)
        self.other = ReplicaLoad()

    def note_change(self, change: Change) -> None:
        self.changes.append(change)
        if change.reason in ("failing", "unreachable") and change.kind == "out":
            assert self.spoke_against[change.replica_id]
        if change.kind == "out" and change.reason in LOSES_STREAMS:
            for flight in self.flights:
                if flight.replica_id == change.replica_id:
                    assert flight.lost.is_set() or flight.is_over

    @rule(silent=st.sets(names), moving=st.sets(names), seconds=st.floats(0.0, 1.5))
    def look(self, silent: set[str], moving: set[str], seconds: float) -> None:
        self.clock.pass_time(seconds)
        self.beats += 1
        for name in moving:
            self.progress[name] += 1
        heard = [self.report(name) for name in NAMES if name not in silent]
        other = GatewayReport(gateway_id="g2", url="", beat=1, loads={"a": self.other})
        self.members.take(seen(*heard, gateways={"g2": Heard(other, 0.0)}))

    def report(self, name: str) -> Any:
        epoch, progress = f"e{self.epochs[name]}", self.progress[name]
        return report(name, epoch=epoch, beat=self.beats, progress=progress)

    @rule(name=names)
    def restart(self, name: str) -> None:
        self.epochs[name] += 1

    @rule(seconds=st.floats(0.0, 100.0))
    def freeze(self, seconds: float) -> None:
        self.clock.pass_time(seconds)

    @rule(num_requests=st.integers(0, 9))
    def load_elsewhere(self, num_requests: int) -> None:
        self.other = ReplicaLoad(num_requests=num_requests, num_prefill_tokens=7 * num_requests)

    @rule(name=names, num_tokens=st.integers(0, 1000))
    def begin(self, name: str, num_tokens: int) -> None:
        self.flights.append(self.members.begin(name, num_tokens))

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def first_byte(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.flights))
        flight.first_byte()
        flight.progress()

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES), twice=st.booleans())
    def end(self, data: st.DataObject, outcome: Outcome, twice: bool) -> None:
        flight = data.draw(st.sampled_from(self.flights))
        if outcome in AGAINST and not flight.is_over:
            self.spoke_against[flight.replica_id] = True
        flight.end(outcome)
        if twice:
            before = len(self.changes)
            flight.end("unreachable")
            assert len(self.changes) == before

    @rule(name=names, outcome=st.sampled_from(OUTCOMES))
    def probe(self, name: str, outcome: Outcome) -> None:
        self.spoke_against[name] |= outcome in AGAINST
        generation = self.members.health.generation(name)
        self.members.probed(name, generation, outcome)

    @invariant()
    def loads_are_what_is_under_way(self) -> None:
        self.members.check()
        for view in self.members.snapshot().replicas:
            ours = [
                flight
                for flight in self.flights
                if flight.replica_id == view.replica_id and not flight.is_over
            ]
            assert 0 <= view.load.num_requests <= len(ours) + 9
            waiting = sum(one.num_prefill_tokens for one in ours if not one.has_answered)
            assert 0 <= view.load.num_prefill_tokens <= waiting + 63
            assert 0 < view.warmth <= 1

    @invariant()
    def a_stream_is_lost_once_for_one_reason(self) -> None:
        for flight in self.flights:
            if flight.lost.is_set():
                assert self.reasons.setdefault(flight, flight.lost_reason) == flight.lost_reason
                assert flight.lost_reason in LOSES_STREAMS

    @invariant()
    def errors_take_out_at_most_a_share_of_those_that_beat(self) -> None:
        standings = [view.out_reason for view in self.members.snapshot().replicas]
        assert standings.count("failing") <= len(NAMES) // 2

    def teardown(self) -> None:
        for flight in self.flights:
            flight.end("client_left")
        self.members.check()
        assert self.members.loads() == {}


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
