"""Whose turn it is, an example each: shares by weight, priorities, and rounds of candidates."""

from __future__ import annotations

import pytest
from queued_request import Requests, finish, order, run, serve

from branchline.engine.fair_queue import FairQueue

LIMIT = 1000


@pytest.fixture
def queue():
    return FairQueue("fair", LIMIT, max_burst_cost=0)


@pytest.fixture
def new(queue):
    return Requests(queue)


# -- shares ----------------------------------------------------------------------------------------


def test_tenants_take_turns_however_many_requests_one_has(queue, new):
    flood = [new("flood") for _ in range(4)]
    mine = [new("mine") for _ in range(2)]
    assert order(queue) == [flood[0], mine[0], flood[1], mine[1], flood[2], flood[3]]


def test_turns_are_measured_in_cost_not_in_requests(queue, new):
    for _ in range(3):
        new("long"), new("short")
    served = []
    for request in queue.candidates():
        served.append(request.tenant)
        queue.charge(request, 200 if request.tenant == "long" else 100)
    assert served == ["long", "short", "short", "long", "short", "long"]


def test_a_tenant_of_twice_the_weight_goes_twice_as_often(queue, new):
    for _ in range(60):
        for tenant, weight in (("one", 1.0), ("two", 2.0), ("four", 4.0)):
            new(tenant, weight=weight)
    served = [request.tenant for request in order(queue, count=70)]
    assert {tenant: served.count(tenant) for tenant in served} == {"one": 10, "two": 20, "four": 40}


def test_the_weight_of_the_latest_request_counts(queue, new):
    old, other = new("a", weight=1.0), new("b")
    new("a", weight=4.0)
    queue.remove(old)
    queue.push(old)  # a request that comes back doesn't bring its weight back
    for _ in range(5):
        new("a", weight=4.0), new("b")
    served = [request.tenant for request in order(queue, count=5)]
    assert served.count("a") == 4
    assert served.count("b") == 1
    assert other in queue


def test_what_decodes_cost_counts_too(queue, new):
    running = new("a")
    run(queue, running, 100)
    waiting = new("a"), new("b")
    queue.charge(running, 2)
    assert order(queue) == [waiting[1], waiting[0]]


def test_adapter_bytes_count_for_the_tenant(queue, new):
    waiting = new("a"), new("b")
    queue.charge_tenant("a", 80)
    assert order(queue) == [waiting[1], waiting[0]]


@pytest.mark.parametrize("is_running", [False, True], ids=["away", "seldom waiting"])
@pytest.mark.parametrize(("max_burst_cost", "num_ahead"), [(0, 0), (250, 3)])
def test_a_tenant_that_takes_less_saves_up_no_more_than_a_burst(
    max_burst_cost, num_ahead, is_running
):
    queue = FairQueue("fair", LIMIT, max_burst_cost)
    new = Requests(queue)
    if is_running:
        run(queue, new("modest"), 100)
    for _ in range(30):
        new("busy")
    serve(queue, 10)
    for _ in range(8):
        new("modest")
    served = serve(queue, 11)
    assert served[:num_ahead] == ["modest"] * num_ahead
    assert served[num_ahead : num_ahead + 2] != ["modest"] * 2
    assert served.count("modest") - served.count("busy") in (
        num_ahead - 1,
        num_ahead,
        num_ahead + 1,
    )


def test_when_nobody_waits_nobody_is_owed_anything(queue, new):
    run(queue, greedy := new("greedy"), 900)
    run(queue, modest := new("modest"), 1)
    first = [new("modest"), new("greedy")]
    for _ in range(4):
        new("modest"), new("greedy")
    served = [request.tenant for request in order(queue)]
    assert served[:4] == ["modest", "greedy"] * 2
    finish(queue, greedy, modest)
    assert first[0] in queue


def test_a_tenant_that_could_not_be_served_catches_up_only_so_far(queue, new):
    for _ in range(40):
        new("stuck"), new("busy")
    for request in queue.candidates():
        if request.tenant == "busy":
            run(queue, request, 100)
            finish(queue, request)
    for _ in range(40):
        new("busy")
    served = serve(queue, 40)
    num_ahead = served.index("busy")
    assert LIMIT // 100 <= num_ahead <= LIMIT // 100 + 2
    assert served[num_ahead:].count("busy") == (40 - num_ahead) / 2


def test_first_come_first_served_knows_no_tenants():
    queue = FairQueue("fcfs", LIMIT)
    new = Requests(queue)
    flood, mine, urgent = [new("flood"), new("flood")], new("mine"), new("mine", priority=-1)
    assert order(queue) == [urgent, *flood, mine]
    assert queue.num_waiting_of("mine") == 2
    assert queue.shed("other") is None
    run(queue, flood[0], 10)
    run(queue, flood[1], 10)
    assert queue.seat_victim(mine, flood) is None


# -- a round of candidates -------------------------------------------------------------------------


def test_inside_a_tenant_lower_priority_numbers_go_first_then_the_oldest(queue, new):
    normal, urgent, later, last = new(), new(priority=-1), new(), new(priority=1)
    assert order(queue) == [urgent, normal, later, last]


def test_candidates_follow_what_is_charged_while_they_are_taken(queue, new):
    a, b = [new("a") for _ in range(3)], [new("b") for _ in range(3)]
    candidates = queue.candidates()
    assert next(candidates) is a[0]
    queue.charge(a[0], 250)
    assert next(candidates) is b[0]
    queue.charge(b[0], 100)
    assert next(candidates) is b[1]
    queue.charge(b[1], 200)
    assert list(candidates) == [a[1], a[2], b[2]]


def test_whoever_is_preempted_or_comes_during_a_round_waits_for_the_next(queue, new):
    victim, first = new("a", priority=9), new("b")
    run(queue, victim, 1)
    candidates = queue.candidates()
    assert next(candidates) is first
    queue.deactivate(victim)
    queue.push(victim)
    late = new("c")
    assert list(candidates) == []
    assert set(queue.candidates()) == {victim, late, first}


def test_one_that_is_unseated_in_its_prefill_is_not_given_again(queue, new):
    first, second = new(), new()
    queue.activate(second)
    candidates = queue.candidates()
    assert next(candidates) is first
    queue.deactivate(second)
    assert list(candidates) == []
    assert list(queue.candidates()) == [first, second]


def test_whoever_goes_during_a_round_is_not_given(queue, new):
    first, second, third = new("a"), new("b"), new("a")
    candidates = queue.candidates()
    assert next(candidates) is first
    queue.remove(second)
    queue.remove(first)
    assert list(candidates) == [third]


def test_a_prefill_under_way_stays_in_line_until_it_is_removed(queue, new):
    large, small = new(), new()
    queue.activate(large)
    queue.charge(large, 500)
    assert list(queue.candidates()) == [large, small]
    assert (queue.num_waiting, queue.num_waiting_of("a")) == (1, 1)
    queue.remove(large)
    assert list(queue.candidates()) == [small]
    finish(queue, large)


def test_upcoming_are_those_that_wait_as_if_they_were_served_in_turn(queue, new):
    a = [new("a", num_uncomputed_tokens=300) for _ in range(2)]
    b = [new("b", num_uncomputed_tokens=100) for _ in range(5)]
    running = new("b", priority=-1, num_uncomputed_tokens=100)
    queue.activate(running)
    assert queue.upcoming(4) == [a[0], *b[:2], a[1]]
    assert queue.upcoming(99) == [a[0], *b[:2], a[1], *b[2:]]
    assert queue.upcoming(0) == []
    assert list(queue.candidates())[:2] == a
