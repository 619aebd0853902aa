"""What a snapshot holds: reports, adapters, and loads that neither double nor miss."""

from __future__ import annotations

from fleet_values import FakeClock, report, seen

from branchline.gateway.fleet.records import (
    AdapterPlace,
    AdapterPlaces,
    GatewayReport,
    ReplicaLoad,
    ReplicaReport,
)
from branchline.gateway.types import ReplicaView
from branchline.gateway.view.health import Health
from branchline.gateway.view.members import Members
from branchline.gateway.view.sightings import Heard


class House:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.members = Members("g1", Health(seed=1), self.clock)

    def take(self, *reports: ReplicaReport, age: float = 0.0) -> None:
        self.members.take(seen(*reports, age=age))

    def view(self, replica_id: str = "a") -> ReplicaView:
        views = {view.replica_id: view for view in self.members.snapshot().replicas}
        return views[replica_id]

    def load(self, replica_id: str = "a") -> tuple[int, int]:
        load = self.view(replica_id).load
        return load.num_requests, load.num_prefill_tokens


def test_a_snapshot_is_one_value_until_something_changes() -> None:
    house = House()
    house.take(report("b"), report("a"))
    first = house.members.snapshot()
    assert [view.replica_id for view in first.replicas] == ["a", "b"]
    assert house.members.snapshot() is first
    house.members.begin("a", 5)
    second = house.members.snapshot()
    assert second is not first
    assert second.replicas[1] is first.replicas[1]
    assert (first.replicas[0].load.num_requests, second.replicas[0].load.num_requests) == (0, 1)


def test_what_we_send_counts_until_a_report_can_know_it() -> None:
    house = House()
    house.take(report(beat=1))
    flight = house.members.begin("a", 100)
    assert house.load() == (1, 100)
    house.clock.pass_time(0.05)
    # This one may have been made while the request was still on its way.
    house.take(report(beat=2))
    assert house.load() == (1, 100)
    house.clock.pass_time(0.25)
    house.take(report(beat=3, num_running=1, num_queued_prefill_tokens=100))
    assert house.load() == (0, 0)
    flight.end("ok")
    assert house.load() == (0, 0)


def test_a_report_that_was_made_before_does_not_cover_it() -> None:
    house = House()
    house.take(report(beat=1))
    house.clock.pass_time(1.0)
    house.members.begin("a", 100)
    house.clock.pass_time(0.2)
    house.take(report(beat=2), age=0.3)
    assert house.load() == (1, 100)


def test_a_report_covers_only_what_its_last_step_could_see() -> None:
    house = House()
    house.take(report(beat=1))
    house.members.begin("a", 100)
    house.clock.pass_time(0.3)
    house.take(report(beat=2, p99_step_seconds=0.5))
    assert house.load() == (1, 100)
    house.clock.pass_time(0.5)
    house.take(report(beat=3, p99_step_seconds=0.5))
    assert house.load() == (0, 0)


def test_tokens_count_to_the_first_byte_and_requests_to_the_end() -> None:
    house = House()
    house.take(report())
    one, other = house.members.begin("a", 100), house.members.begin("a", 20)
    one.first_byte()
    one.first_byte()
    assert house.load() == (2, 20)
    one.end("ok")
    other.end("client_left")
    other.first_byte()
    assert house.load() == (0, 0)


def gateway(gateway_id: str, **loads: int) -> GatewayReport:
    return GatewayReport(
        gateway_id=gateway_id,
        url="",
        beat=1,
        loads={
            one: ReplicaLoad(num_requests=1, num_prefill_tokens=num) for one, num in loads.items()
        },
    )


def test_other_gateways_loads_are_added_and_our_own_is_not_read_back() -> None:
    house = House()
    others = {
        "g1": Heard(gateway("g1", a=1000), 0.0),
        "g2": Heard(gateway("g2", a=30, b=5), 0.0),
        "g3": Heard(gateway("g3", a=2), 0.1),
    }
    house.members.take(seen(report("a"), report("b"), gateways=others))
    house.members.begin("a", 100)
    assert (house.load("a"), house.load("b")) == ((3, 132), (1, 5))
    assert set(house.members.gateways()) == {"g2", "g3"}
    assert house.members.loads() == {"a": ReplicaLoad(num_requests=1, num_prefill_tokens=100)}


def test_a_gateway_that_died_takes_its_loads_along_and_a_blind_time_kills_none() -> None:
    house = House()
    both = {one: Heard(gateway(one, a=10), 0.0) for one in ("g2", "g3")}
    house.members.take(seen(report(), gateways=both))
    house.clock.pass_time(30.0)
    old = {one: Heard(gateway(one, a=10), 30.0) for one in ("g2", "g3")}
    house.members.take(seen(report(beat=2), gateways=old))
    assert set(house.members.gateways()) == {"g2", "g3"}
    for beat in range(3, 11):
        house.clock.pass_time(0.45)
        house.members.take(seen(report(beat=beat), gateways={"g2": both["g2"]}))
    assert set(house.members.gateways()) == {"g2"}
    assert house.load() == (1, 10)


def test_a_look_past_redis_says_nothing_of_gateways() -> None:
    house = House()
    house.members.take(seen(report(), gateways={"g2": Heard(gateway("g2"), 0.0)}))
    for beat in range(2, 20):
        house.clock.pass_time(0.4)
        house.take(report(beat=beat))
    assert set(house.members.gateways()) == {"g2"}


def test_adapters_are_read_once_a_version() -> None:
    house, places = House(), [AdapterPlace(name="legal", digest="d", tier="host")]
    house.take(report(adapters_version=3))
    assert house.members.known_places() == {}
    told = AdapterPlaces(epoch="e1", version=3, places=places)
    house.members.take(seen(report(beat=2, adapters_version=3), places={"a": told}))
    assert house.members.known_places() == {"a": ("e1", 3)}
    assert house.view().places["legal"].tier == "host"
    # Another process's adapters are not this one's.
    stray = AdapterPlaces(epoch="e0", version=9)
    house.members.take(seen(report(beat=3, adapters_version=3), places={"a": stray}))
    assert house.members.known_places() == {"a": ("e1", 3)}


def test_of_two_ways_to_look_the_newer_report_stays() -> None:
    house = House()
    house.take(report(beat=9, num_running=4))
    house.clock.pass_time(0.1)
    house.take(report(beat=8, num_running=1), age=0.4)
    assert house.view().report.num_running == 4


def test_a_report_of_the_old_process_does_not_undo_a_restart() -> None:
    house = House()
    house.take(report(epoch="e1", beat=50))
    house.clock.pass_time(0.5)
    house.take(report(epoch="e2", beat=1))
    flight = house.members.begin("a", 1)
    house.clock.pass_time(0.1)
    house.take(report(epoch="e1", beat=50), age=0.6)
    assert house.view().report.epoch == "e2"
    assert not flight.lost.is_set()
