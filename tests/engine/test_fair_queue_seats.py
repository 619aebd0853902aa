"""Who makes way in a full queue and in a full batch, and what the queue forgets."""

from __future__ import annotations

import pytest
from queued_request import QueuedRequest, Requests, decode, finish, order, overdue_turn, run, seats

from branchline.engine.fair_queue import FairQueue

LIMIT = 1000


@pytest.fixture
def queue():
    return FairQueue("fair", LIMIT, max_burst_cost=0)


@pytest.fixture
def new(queue):
    return Requests(queue)


# -- who makes way ---------------------------------------------------------------------------------


def test_a_full_queue_sheds_the_newest_of_whom_most_waits(queue, new):
    flood, mine = [new("flood") for _ in range(5)], new("mine")
    assert queue.shed("mine") is flood[-1]
    assert queue.shed("new") is flood[-1]
    assert queue.shed("flood") is None
    queue.remove(mine)
    for request in flood[2:]:
        queue.remove(request)
    assert queue.shed("new") is flood[1]
    queue.remove(flood[1])
    assert queue.shed("new") is None, "one against one: the new one is refused"


def test_what_waits_is_measured_by_weight(queue, new):
    heavy = [new("heavy", weight=4.0) for _ in range(6)]
    light = [new("light", weight=1.0) for _ in range(2)]
    assert queue.shed("new") is light[-1]
    assert queue.shed("heavy") is light[-1]
    assert queue.shed("light") is None
    assert queue.shed("new", weight=0.5) is None
    assert heavy[0] in queue


def test_nobody_is_shed_who_has_begun(queue, new):
    requests = [new("flood") for _ in range(4)]
    queue.activate(requests[2])
    queue.deactivate(requests[2])
    queue.activate(requests[3])
    assert queue.shed("new") is requests[1]
    for request in requests[:2]:
        queue.remove(request)
    new("a")
    assert queue.shed("new") is None


def test_the_tenant_with_most_seats_gives_one_up(queue, new):
    running = seats(queue, new, flood=6, mine=1)
    waiting = new("mine")
    decode(queue, running)
    victim = queue.seat_victim(waiting, running)
    assert victim is running[5], "the last of those with the higher priority number"
    assert victim.tenant == "flood"


def test_no_seat_is_given_up_that_could_be_asked_back(queue, new):
    running = seats(queue, new, flood=3, mine=1)
    waiting = new("mine")
    assert queue.seat_victim(waiting, running) is None
    running += seats(queue, new, flood=1)
    decode(queue, running)
    victim = queue.seat_victim(waiting, running)
    assert victim is running[1]
    queue.deactivate(victim)
    queue.push(victim)
    running.remove(victim)
    run(queue, waiting, 10)
    running.append(waiting)
    waiting = new("mine")
    decode(queue, running)
    assert queue.seat_victim(victim, running) is None
    assert queue.seat_victim(waiting, running) is None


def test_a_seat_is_for_who_was_served_less(queue, new):
    running = seats(queue, new, flood=6)
    waiting = new("mine")
    decode(queue, running)
    assert queue.seat_victim(waiting, running) is not None
    queue.charge_tenant("mine", 500)
    assert queue.seat_victim(waiting, running) is None


def test_tenants_that_took_about_the_same_leave_each_other_in_peace():
    queue = FairQueue("fair", LIMIT, max_burst_cost=400)
    new = Requests(queue)
    running = seats(queue, new, flood=6)
    queue.charge(running[0], LIMIT)
    run(queue, new("mine"), 350)  # of its burst
    decode(queue, running)
    assert queue.seat_victim(late := new("mine"), running) is None
    queue.charge(running[0], 40)
    assert queue.seat_victim(late, running) is running[5]


def test_nobody_gives_up_a_seat_in_the_round_in_which_it_was_served(queue, new):
    running = seats(queue, new, flood=6)
    latest, waiting = new("flood"), new("mine")
    decode(queue, running)
    candidates = queue.candidates()
    assert next(candidates) is waiting
    assert next(candidates) is latest
    run(queue, latest, 30)
    assert queue.seat_victim(waiting, [*running, latest]) is running[5]
    decode(queue, running)
    assert queue.seat_victim(waiting, [latest, running[0]]) is latest


def test_seats_are_measured_by_weight(queue, new):
    running = seats(queue, new, heavy=6, light=3)
    new("heavy", weight=4.0)
    waiting = new("mine")
    decode(queue, running)
    assert queue.seat_victim(waiting, running).tenant == "light"


def test_whoever_was_overdue_keeps_its_seat(queue, new):
    starved = overdue_turn(queue, new, LIMIT, tenant="flood")
    run(queue, starved, 10)
    running = [starved, *seats(queue, new, flood=3)]
    waiting = new("mine")
    decode(queue, running)
    assert queue.seat_victim(waiting, running) not in (starved, None)
    assert queue.seat_victim(waiting, [starved]) is None


# -- bookkeeping -----------------------------------------------------------------------------------


def test_tenants_that_are_gone_are_forgotten(queue, new):
    for i in range(3000):
        run(queue, request := new(f"tenant {i}"), 100)
        finish(queue, request)
        assert queue.num_tenants <= 2
    queue = FairQueue("fair", LIMIT, max_burst_cost=500)
    new = Requests(queue)
    for i in range(3000):
        run(queue, request := new(f"tenant {i}"), 100)
        finish(queue, request)
        assert queue.num_tenants <= 2


def test_a_forgotten_tenant_was_owed_nothing(queue, new):
    run(queue, first := new("a"), 100)
    finish(queue, first)
    new("b"), new("a")
    run(queue, new("c"), 10)
    assert queue.num_tenants == 3
    assert [request.tenant for request in order(queue)] == ["b", "a"]


@pytest.mark.parametrize("method", ["push", "activate", "remove", "deactivate"])
def test_nothing_is_done_twice(queue, new, method):
    request = new()
    if method == "deactivate":
        queue.activate(request)
    if method != "push":
        getattr(queue, method)(request)
    with pytest.raises(AssertionError):
        getattr(queue, method)(request)


def test_a_request_that_was_never_queued_is_not_in_it(queue):
    request = QueuedRequest("a", 0)
    assert request not in queue
    with pytest.raises(AssertionError):
        queue.remove(request)
