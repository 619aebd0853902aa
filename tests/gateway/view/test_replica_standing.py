"""When a replica is out and how it comes back: silence, standstill, restart."""

from __future__ import annotations

import pytest
from fleet_values import report, seen
from standing_house import StandingHouse, lost

from branchline.gateway.view.health import Change
from branchline.gateway.view.sightings import Heard, Sightings


def test_a_silent_replica_is_out_after_its_lease_and_loses_its_streams() -> None:
    house = StandingHouse("a", "b")
    flight, other = house.members.begin("a", 10), house.members.begin("b", 10)
    del house.fields["a"]
    house.beat(3.0)
    assert (house.out(), lost(flight)) == (None, "")
    house.beat(0.5)
    assert (house.out(), lost(flight)) == ("lease", "lease")
    assert (house.out("b"), lost(other)) == (None, "")
    assert house.changes == [Change("out", "a", "lease")]


def test_a_beat_that_grows_old_in_redis_is_silence_too() -> None:
    house = StandingHouse("a")
    old = report("a", beat=1)
    for age in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        house.clock.pass_time(0.5)
        house.members.take(seen(old, age=age))
    assert house.out() is None
    house.clock.pass_time(0.5)
    house.members.take(seen(old, age=3.5))
    assert house.out() == "lease"


def test_time_in_which_nothing_could_be_seen_is_no_silence() -> None:
    """Redis was frozen for a minute: all beats are old, and none could have been told."""
    house = StandingHouse("a")
    flight = house.members.begin("a", 10)
    house.clock.pass_time(60.0)
    house.members.take(seen(report("a", beat=house.number), age=60.0))
    assert (house.out(), lost(flight)) == (None, "")
    house.beat(1.0)
    assert house.out() is None


def test_an_empty_redis_is_no_deletion() -> None:
    house = StandingHouse("a")
    house.clock.pass_time(0.25)
    house.members.take(seen())
    assert house.out() is None
    assert [one.replica_id for one in house.members.snapshot().replicas] == ["a"]


def test_a_gateway_that_starts_behind_a_dead_replica_sees_it_out() -> None:
    house = StandingHouse()
    house.members.take(seen(report("a"), age=20.0))
    assert house.out() == "lease"


def test_one_that_was_silent_comes_back_by_a_probe_and_warms_up() -> None:
    house = StandingHouse("a")
    fields = house.fields.pop("a")
    house.beat(4.0)
    assert house.due() == []
    house.fields["a"] = fields
    house.beat(2.0)
    assert (house.out(), house.due()) == ("lease", ["a"])
    house.probe("ok")
    assert (house.out(), house.warmth()) == (None, pytest.approx(0.1))
    house.beat(5.0)
    assert house.warmth() == pytest.approx(0.55)
    house.beat(5.0)
    assert house.warmth() == 1.0
    assert house.changes[-1] == Change("back", "a", "lease")


def test_what_is_silent_for_a_minute_is_forgotten() -> None:
    house = StandingHouse("a", "b")
    flight = house.members.begin("a", 10)
    del house.fields["a"]
    house.beat(61.0)
    assert [one.replica_id for one in house.members.snapshot().replicas] == ["b"]
    assert house.changes[-1] == Change("out", "a", "gone")
    flight.end("unreachable")
    assert lost(house.members.begin("a", 1)) == "gone"


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_who_is_not_ready_gets_nothing_new_and_keeps_its_streams(state: str) -> None:
    house = StandingHouse("a")
    flight = house.members.begin("a", 10)
    house.fields["a"]["state"] = state
    house.beat()
    assert (house.out(), lost(flight), house.due()) == (state, "", [])


def test_work_without_progress_is_wedged_within_five_seconds() -> None:
    house = StandingHouse("a")
    house.fields["a"] = {"num_running": 2, "progress": 7}
    house.beat()
    flight = house.members.begin("a", 10)
    house.beat(4.25)
    assert house.out() is None
    house.beat(0.5)
    assert (house.out(), lost(flight)) == ("wedged", "wedged")


def test_a_request_of_ours_without_an_answer_is_work_too() -> None:
    """An engine that stopped before it saw the request still reports that it has nothing."""
    house = StandingHouse("a")
    flight = house.members.begin("a", 10)
    house.beat(1.75)
    assert house.due() == ["a"]
    house.beat(3.0)
    assert (house.out(), lost(flight)) == ("wedged", "wedged")


def test_an_answer_that_its_client_reads_slowly_is_none() -> None:
    house = StandingHouse("a")
    flight = house.members.begin("a", 10)
    flight.first_byte()
    house.beat(30.0)
    assert house.out() is None


def test_steps_of_a_slow_machine_are_waited_for() -> None:
    house = StandingHouse("a")
    house.fields["a"] = {"num_running": 1, "progress": 7, "p99_step_seconds": 1.0}
    house.beat(9.5)
    assert house.out() is None
    house.fields["a"]["progress"] = 8
    house.beat(9.5)
    assert house.out() is None
    house.beat(1.0)
    assert house.out() == "wedged"


def test_standing_still_while_redis_was_frozen_is_not_wedged() -> None:
    house = StandingHouse("a")
    house.fields["a"] = {"num_running": 1, "progress": 7}
    house.beat()
    house.clock.pass_time(20.0)
    house.members.take(seen(report("a", beat=house.number, num_running=1, progress=7), age=20.0))
    assert house.out() is None


def test_a_wedged_one_returns_when_a_probe_gets_its_token() -> None:
    house = StandingHouse("a")
    house.fields["a"] = {"num_running": 1, "progress": 7}
    house.beat(5.0)
    assert (house.out(), house.due()) == ("wedged", [])
    house.beat(1.25)
    assert house.due() == ["a"]
    house.probe("stalled")
    assert (house.out(), house.due()) == ("wedged", [])
    house.beat(2.5)
    assert house.due() == ["a"]
    house.fields["a"] = {"num_running": 1, "progress": 8}
    house.probe("ok")
    house.beat()
    assert house.out() is None


def test_a_new_process_has_lost_the_streams_of_the_old_and_comes_warm_slowly() -> None:
    house = StandingHouse("a", "b")
    flight = house.members.begin("a", 10)
    house.fields["a"] = {"epoch": "e2", "state": "starting"}
    house.beat(0.25)
    assert (house.out(), lost(flight)) == ("starting", "restarted")
    house.fields["a"] = {"epoch": "e2"}
    house.beat()
    assert (house.out(), house.warmth()) == (None, pytest.approx(0.1))
    # What the old process's requests ended with says nothing of the new one.
    flight.end("unreachable")
    house.end("unreachable")
    assert house.out() is None


def test_a_restart_ends_an_ejection() -> None:
    house = StandingHouse("a", "b")
    house.end("unreachable", "unreachable")
    assert house.out() == "unreachable"
    house.clock.pass_time(0.25)
    house.fields["a"] = {"epoch": "e2"}
    house.beat()
    assert house.out() is None


def test_a_clock_that_steps_back_hides_no_live_replica_and_keeps_no_dead_one() -> None:
    """Redis moved to a host whose clock is ten seconds behind: beats lie in the future."""
    house = StandingHouse("a", "b")
    for _ in range(2):
        house.clock.pass_time(0.25)
        told = report("a", beat=house.number), report("b", beat=house.number)
        house.members.take(seen(*told, age=-10.0))
    assert (house.out("a"), house.out("b")) == (None, None)
    dead = Heard(report("b", beat=house.number), -9.0)
    for number in range(1, 9):
        house.clock.pass_time(0.45)
        alive = Heard(report("a", beat=house.number + number, num_running=number), 0.1)
        house.members.take(Sightings(replicas={"a": alive, "b": dead}))
    assert (house.out("a"), house.out("b")) == (None, "lease")
    assert house.members.snapshot().replicas[0].report.num_running == 8
