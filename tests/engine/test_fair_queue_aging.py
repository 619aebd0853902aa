"""Nobody is overtaken without bound: inside a tenant, between tenants, and by another count."""

from __future__ import annotations

import itertools
import random

import pytest
from queued_request import QueuedRequest, Requests, finish, overdue_turn, run

from branchline.engine.fair_queue import FairQueue

LIMIT = 1000


@pytest.fixture
def queue():
    return FairQueue("fair", LIMIT, max_burst_cost=0)


@pytest.fixture
def new(queue):
    return Requests(queue)


# -- aging: inside a tenant ------------------------------------------------------------------------


def test_a_request_overtaken_by_more_than_the_limit_goes_first(queue, new):
    patient = new(priority=5)
    for _ in range(11):
        urgent = new(priority=0)
        assert next(queue.candidates()) is urgent
        run(queue, urgent, 100)
    new(priority=0)
    assert next(queue.candidates()) is patient


def test_the_overdue_go_in_order_of_arrival_whatever_their_priority(queue, new):
    worst, bad = new(priority=9), new(priority=5)
    run(queue, new(priority=0), LIMIT + 1)
    latest = [new(priority=0), new(priority=-1)]
    assert list(queue.candidates()) == [worst, bad, *reversed(latest)]


def test_only_what_came_later_overtakes(queue, new):
    first = new(priority=0)
    patient = new(priority=5)
    run(queue, first, 10 * LIMIT)
    urgent = new(priority=0)
    assert list(queue.candidates()) == [urgent, patient]
    queue.charge(patient, 10 * LIMIT)
    assert list(queue.candidates()) == [urgent, patient]
    queue.charge_tenant("a", LIMIT + 1)
    assert list(queue.candidates()) == [patient, urgent]


def test_other_tenants_do_not_overtake_in_the_line(queue, new):
    patient, urgent = new(priority=5), new(priority=0)
    run(queue, new("b"), 10 * LIMIT)
    assert list(queue.candidates()) == [urgent, patient]


def test_what_overtook_a_request_counts_on_after_a_preemption(queue, new):
    patient = new(priority=5)
    run(queue, new(priority=0), LIMIT - 100)
    run(queue, patient, 10)
    queue.deactivate(patient)
    run(queue, new(priority=0), 10 * LIMIT)  # while it does not wait
    queue.push(patient)
    urgent = new(priority=0)
    assert list(queue.candidates()) == [urgent, patient]
    run(queue, urgent, 101)
    assert list(queue.candidates()) == [patient]
    new(priority=0)
    assert next(queue.candidates()) is patient


def test_nobody_newer_starts_before_an_overdue_request_that_can_not(queue, new):
    patient = new(priority=5)
    running = new(priority=0)
    queue.activate(running)
    queue.charge(running, LIMIT + 1)
    new(priority=0)
    other = new("b")
    given = []
    for request in queue.candidates():
        given.append(request)
        if request is patient:
            queue.passed(request)
    assert given == [other, patient, running]


def test_a_held_round_skips_whoever_loses_its_seat_or_goes(queue, new):
    patient = new(priority=5)
    running = [new(priority=0) for _ in range(3)]
    for request in running:
        queue.activate(request)
    queue.charge(running[0], LIMIT + 1)
    candidates = queue.candidates()
    assert next(candidates) is patient
    queue.passed(patient)
    assert next(candidates) is running[0]
    queue.remove(running[1])
    queue.deactivate(running[2])
    assert list(candidates) == []


# -- aging: between tenants ------------------------------------------------------------------------


def test_one_whose_turn_came_goes_before_everybody_once_it_is_overdue(queue, new):
    starved = overdue_turn(queue, new, LIMIT)
    queue.charge_tenant("starved", 50 * LIMIT)
    fresh = new("fresh")
    assert list(queue.candidates()) == [starved, fresh]
    assert queue.upcoming(2) == [starved, fresh]


def test_nobody_starts_before_an_overdue_turn_that_can_not_be_taken(queue, new):
    starved = overdue_turn(queue, new, LIMIT)
    new("fresh")
    running = new("other")
    queue.activate(running)
    candidates = queue.candidates()
    assert next(candidates) is starved
    queue.passed(starved)
    assert list(candidates) == [running]


def test_others_go_on_behind_an_overdue_turn_that_is_merely_skipped(queue, new):
    starved, fresh = overdue_turn(queue, new, LIMIT), new("fresh")
    assert list(queue.candidates()) == [starved, fresh]


def test_an_overdue_turn_that_goes_during_a_round_is_not_given(queue, new):
    first, second, third = (new(tenant) for tenant in "xyz")
    for request in (first, second, third):
        queue.passed(request)
    run(queue, new("busy"), LIMIT + 1)
    candidates = queue.candidates()
    assert next(candidates) is first
    queue.remove(second)
    queue.activate(third)
    assert list(candidates) == [third]  # as a prefill under way
    queue.remove(third)
    assert list(queue.candidates()) == [first]


def test_a_tenant_has_one_overdue_turn_at_a_time(queue, new):
    starved = [new("starved") for _ in range(3)]
    for request in starved:
        queue.passed(request)
    run(queue, new("busy"), LIMIT + 1)
    assert [queue.overdue(request) for request in starved] == [True, False, False]
    run(queue, starved[0], 1)
    queue.passed(starved[1])
    assert not queue.overdue(starved[1])
    run(queue, new("busy"), LIMIT + 1)
    assert queue.overdue(starved[1])


def test_its_own_load_does_not_overtake_a_request(queue, new):
    starved = new("starved")
    queue.passed(starved)
    queue.charge(starved, 5 * LIMIT)
    assert not queue.overdue(starved)


def test_what_passed_a_turn_counts_on_after_a_preemption(queue, new):
    starved = new("starved")
    queue.passed(starved)
    run(queue, new("busy"), LIMIT - 10)
    run(queue, starved, 1)
    run(queue, new("busy"), LIMIT)  # while it runs
    assert not queue.overdue(starved)
    queue.deactivate(starved)
    queue.push(starved)
    run(queue, new("busy"), LIMIT)  # before its turn has come again
    queue.passed(starved)
    assert not queue.overdue(starved)
    run(queue, new("busy"), 11)
    assert queue.overdue(starved)


# -- the promise, by another count -----------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fair", "fcfs"])
def test_nothing_starts_before_a_request_that_was_overtaken_by_the_limit(policy):
    chance, num_held, num_starts = random.Random(1), 0, 0
    for _ in range(6):
        queue = FairQueue(policy, LIMIT)
        new, books = Requests(queue), Books(policy)
        running: list[QueuedRequest] = []
        for _ in range(1500):
            while queue.num_waiting < 12:
                tenant, priority = chance.choice("aaab"), chance.choice([0, 0, 0, 3])
                books.blocked[new(tenant, priority=priority)] = chance.random() < 0.1
            for request in running[:]:
                queue.charge(request, 2)
                books.charge(request, 2)
                if chance.random() < 0.2:
                    running.remove(request)
                    finish(queue, request)
            books.begin_round()
            for request in itertools.islice(queue.candidates(), 5):
                if books.blocked[request]:
                    queue.passed(request)
                    books.passed(request)
                    books.blocked[request] = chance.random() < 0.95
                    continue
                num_held += books.start(request)
                num_starts += 1
                run(queue, request, 60)
                books.charge(request, 60)
                running.append(request)
    assert num_starts > 5000
    assert num_held > 50, "nobody was ever overdue"


class Books:
    """What each waiting request was overtaken by, added up one by one.

    The promise is kept from round to round: what is served within one comes on top.
    """

    def __init__(self, policy):
        self._policy = policy
        self.blocked: dict[QueuedRequest, bool] = {}
        self._by_later: dict[QueuedRequest, float] = {}
        self._since_turn: dict[QueuedRequest, float] = {}
        self._at_begin: tuple[dict[QueuedRequest, float], dict[QueuedRequest, float]] = {}, {}
        self._started: set[QueuedRequest] = set()

    def waiting(self):
        return [request for request in self.blocked if request not in self._started]

    def line(self, request):
        return request.tenant if self._policy == "fair" else ""

    def begin_round(self):
        self._at_begin = dict(self._by_later), dict(self._since_turn)

    def charge(self, request, cost):
        for other in self.waiting():
            if self.line(other) == self.line(request) and other.arrival < request.arrival:
                self._by_later[other] = self._by_later.get(other, 0) + cost
        for other in self._since_turn:
            self._since_turn[other] += cost if other is not request else 0

    def passed(self, request):
        if all(self.line(other) != self.line(request) for other in self._since_turn):
            self._since_turn[request] = 0

    def start(self, request):
        """Nobody with a better claim waits; returns whether the request itself was overdue."""
        by_later, since_turn = self._at_begin
        was_overdue = by_later.get(request, 0) > LIMIT
        was_overdue_turn = since_turn.get(request, 0) > LIMIT
        for other, cost in by_later.items():
            if other in self._started or self.line(other) != self.line(request):
                continue
            assert cost <= LIMIT or other.arrival >= request.arrival or was_overdue_turn
        for other, cost in since_turn.items():
            assert cost <= max(LIMIT, since_turn.get(request, 0)) or other in self._started
        self._started.add(request)
        self._since_turn.pop(request, None)
        return was_overdue or was_overdue_turn
