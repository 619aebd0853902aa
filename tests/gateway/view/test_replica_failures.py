"""When failed requests take a replica out, and how probes bring it back."""

from __future__ import annotations

import asyncio
import time

import pytest
from standing_house import StandingHouse, lost

from branchline.gateway.types import Outcome
from branchline.gateway.view.health import Change
from branchline.gateway.view.lag import LagMeter


@pytest.mark.parametrize("outcome", ["refused", "client_left", "overloaded"])
def test_what_clients_do_never_counts(outcome: Outcome) -> None:
    house = StandingHouse("a", "b")
    house.end(*[outcome] * 500)
    house.end("unreachable")
    house.end(*[outcome] * 500)
    assert house.out() is None
    assert house.changes == []


@pytest.mark.parametrize("outcome", ["unreachable", "stalled"])
def test_a_dead_path_twice_in_a_row_ejects_but_streams_go_on(outcome: Outcome) -> None:
    house = StandingHouse("a", "b")
    flight = house.members.begin("a", 10)
    house.end(outcome, "ok", outcome)
    assert house.out() is None
    house.end(outcome)
    assert (house.out(), lost(flight)) == ("unreachable", "")


def test_errors_in_a_row_and_a_large_share_of_errors_eject() -> None:
    house = StandingHouse("a", "b", "c", "d")
    house.end(*["failed"] * 4)
    assert house.out("a") is None
    house.end("failed")
    assert house.out("a") == "failing"
    for _ in range(5):
        house.end("failed", "failed", "ok", name="b")
    assert house.out("b") == "failing"


def test_one_request_that_breaks_every_replica_leaves_half_of_them() -> None:
    house = StandingHouse("a", "b", "c", "d")
    for name in "abcd":
        house.end(*["failed"] * 50, name=name)
    assert [house.out(name) for name in "abcd"].count("failing") == 2
    alone = StandingHouse("a")
    alone.end(*["failed"] * 50)
    assert alone.out() is None


def test_a_gateway_that_reaches_nobody_blames_half_of_them_at_most() -> None:
    """It may be itself: too busy to connect in time. They all still beat."""
    house = StandingHouse("a", "b", "c", "d")
    for name in "abcd":
        house.end(*["unreachable"] * 50, name=name)
    assert [house.out(name) for name in "abcd"].count("unreachable") == 2
    alone = StandingHouse("a")
    alone.end(*["unreachable"] * 50)
    assert alone.out() is None


def test_one_that_is_silent_and_unreachable_is_out_even_if_it_is_the_last() -> None:
    house = StandingHouse("a")
    fields = house.fields.pop("a")
    house.beat(1.5)
    house.end("unreachable", "unreachable")
    assert house.out() == "unreachable"
    house.fields["a"] = fields
    house.beat(0.5)
    house.probe("ok")
    assert house.out() is None


def test_what_fails_while_this_process_stood_still_is_held_against_nobody() -> None:
    house = StandingHouse("a", "b")
    house.lag.tick(0.4)
    house.end(*["unreachable", "stalled"] * 20)
    assert house.out() is None
    house.beat(2.0)
    house.end("unreachable", "unreachable")
    assert house.out() == "unreachable"


def test_time_in_which_this_process_stood_still_is_no_silence() -> None:
    house = StandingHouse("a")
    del house.fields["a"]
    for _ in range(12):
        house.clock.pass_time(0.5)
        house.lag.tick(0.3)
        house.beat()
    assert house.out() is None
    house.beat(3.5)
    assert house.out() == "lease"


async def test_a_loop_that_stands_still_is_noticed() -> None:
    meter = LagMeter()
    ticking = asyncio.create_task(meter.run())
    await asyncio.sleep(0.06)
    assert not meter.was_late
    time.sleep(0.35)
    await asyncio.sleep(0.06)
    assert meter.was_late
    assert meter.take() > 0.25
    assert meter.take() < 0.25
    ticking.cancel()


def test_back_off_doubles_with_jitter_to_its_limit() -> None:
    house, waits = StandingHouse("a", "b"), []
    house.end("unreachable", "unreachable")
    for _ in range(8):
        started = house.clock.now
        while not house.due():
            house.beat(0.05, step=0.05)
            house.end("ok", name="b")
            house.members.probed("b", house.members.health.generation("b"), "ok")
        waits.append(house.clock.now - started)
        house.probe("unreachable")
    for wait, ideal in zip(waits, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert 0.8 * ideal - 0.2 <= wait <= 1.2 * ideal + 0.2
    assert house.out() == "unreachable"


def test_an_overloaded_answer_brings_nobody_back() -> None:
    house = StandingHouse("a", "b")
    house.end("unreachable", "unreachable")
    house.beat(2.0)
    house.probe("overloaded")
    assert (house.out(), house.due()) == ("unreachable", [])


def test_idle_replicas_are_probed_and_busy_ones_are_not() -> None:
    house = StandingHouse("a", "b")
    for progress in range(24):
        house.fields["b"]["progress"] = progress
        house.beat(0.25)
    assert house.due() == ["a"]
    house.probe("ok")
    assert house.due() == []


def test_a_probe_that_fails_counts_as_any_request() -> None:
    house = StandingHouse("a", "b")
    house.beat(5.0)
    house.probe("stalled")
    house.probe("stalled")
    assert house.out() == "unreachable"


def test_an_outcome_from_before_the_ejection_is_old_news() -> None:
    house = StandingHouse("a", "b")
    flights = [house.members.begin("a", 1) for _ in range(50)]
    for flight in flights:
        flight.end("unreachable")
    assert house.changes == [Change("out", "a", "unreachable")]
    house.beat(1.5)
    assert house.due() == ["a"]
