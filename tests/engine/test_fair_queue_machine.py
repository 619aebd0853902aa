"""Any use of the fair queue: the answers of its rules in plain lists, and the books in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain_queue import PlainQueue
from queued_request import QueuedRequest

from branchline.engine.fair_queue import FairQueue

TENANTS = ("a", "b", "c", "d")
COSTS = [1, 2, 7, 40, 100]
"""Whole numbers over weights that are powers of two: no float is ever rounded here."""

STEPS = ["start", "start", "finish prefill", "finish prefill", "pass", "pass", "pass", "skip"]
EVENTS = [None, None, None, None, "preempt", "abort", "unseat", "decode", "load", "push"]


rounds = st.tuples(*map(st.sampled_from, (STEPS, COSTS, EVENTS)), st.integers(0, 99))


class FairQueueMachine(RuleBasedStateMachine):
    """Plays the scheduler: takes candidates, charges, seats, preempts and aborts."""

    @initialize(
        policy=st.sampled_from(["fair", "fcfs"]),
        limit=st.sampled_from([60, 300]),
        burst=st.sampled_from([0, 20, 80]),
    )
    def start(self, policy, limit, burst):
        self.queue = FairQueue(policy, limit, burst)
        self.model = PlainQueue(policy, limit, burst)
        self.requests: list[QueuedRequest] = []
        self.num_arrivals = 0

    def entry(self, request):
        return self.model.live[request.request_id]

    def both(self, method, *arguments):
        getattr(self.queue, method)(*arguments)
        getattr(self.model, method)(*arguments)

    def some(self, number, is_wanted):
        wanted = [r for r in self.requests if is_wanted(self.entry(r))]
        return wanted[number % len(wanted)] if wanted else None

    def is_gone(self, request):
        return request.request_id not in self.model.live

    # -- what a scheduler does -------------------------------------------------------------------

    @rule(
        tenant=st.sampled_from(TENANTS),
        weight=st.sampled_from([0.5, 1.0, 1.0, 4.0]),
        priority=st.integers(-1, 1),
        num_tokens=st.sampled_from([1, 30, 500]),
    )
    def push(self, tenant, weight, priority, num_tokens):
        request = QueuedRequest(
            f"r{self.num_arrivals}", self.num_arrivals, tenant, weight, priority, num_tokens
        )
        self.num_arrivals += 1
        self.requests.append(request)
        self.both("push", request)

    @rule(number=st.integers(0, 99), cost=st.sampled_from(COSTS))
    def decode(self, number, cost):
        request = self.some(number, lambda e: e.seated)
        if request is not None:
            self.both("charge", request, cost)

    @rule(number=st.integers(0, 99), cost=st.sampled_from(COSTS))
    def load(self, number, cost):
        """An adapter's way to the device, for a request that waits."""
        request = self.some(number, lambda e: e.queued and not e.seated)
        if request is not None:
            self.both("charge", request, cost)

    @rule(tenant=st.sampled_from(TENANTS), cost=st.sampled_from(COSTS))
    def charge_tenant(self, tenant, cost):
        self.both("charge_tenant", tenant, cost)

    @rule(number=st.integers(0, 99))
    def preempt(self, number):
        request = self.some(number, lambda e: e.seated)
        if request is not None:
            if self.entry(request).queued:
                self.both("remove", request)
            self.both("deactivate", request)
            self.both("push", request)

    @rule(number=st.integers(0, 99))
    def unseat(self, number):
        """Preempted in its prefill, and left in line."""
        request = self.some(number, lambda e: e.seated and e.queued)
        if request is not None:
            self.both("deactivate", request)

    @rule(number=st.integers(0, 99), removed_first=st.booleans())
    def abort(self, number, removed_first):
        request = self.some(number, lambda _: True)
        if request is not None:
            entry = self.entry(request)
            calls = [("remove", entry.queued), ("deactivate", entry.seated)]
            for method, is_due in calls if removed_first else reversed(calls):
                if is_due:
                    self.both(method, request)
            del self.model.live[request.request_id]
            self.requests.remove(request)

    @rule(number=st.integers(0, 99))
    def give_up_a_turn(self, number):
        request = self.some(number, lambda e: e.queued and not e.seated)
        if request is not None:
            self.both("passed", request)

    @rule(steps=st.lists(rounds, max_size=9))
    def schedule(self, steps):
        """One round of candidates, in the midst of which anything may happen."""
        this, given, whole = self.model.begin(), None, []
        candidates = self.queue.candidates()
        for step, cost, event, number in steps:
            expected = self.model.next(this, given)
            given = next(candidates, None)
            assert given is expected
            if given is None:
                break
            self._consider(given, step, cost, whole)
            if event is not None:
                self._happen(event, number, cost)
        for request in whole:
            if not self.is_gone(request) and self.entry(request).seated:
                self.both("remove", request)

    def _consider(self, request, step, cost, whole):
        entry = self.entry(request)
        if step == "pass":
            self.both("passed", request)
        elif step != "skip":
            if not entry.seated:
                self.both("activate", request)
            self.both("charge", request, cost)
            if step == "finish prefill":
                whole.append(request)

    def _happen(self, event, number, cost):
        if event == "push":
            self.push(TENANTS[number % 4], 1.0, number % 3 - 1, 30)
        elif event == "abort":
            self.abort(number, number % 2 == 0)
        elif event in ("decode", "load"):
            getattr(self, event)(number, cost)
        else:
            getattr(self, event)(number)

    # -- what must hold --------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "queue"))
    @rule(count=st.integers(0, 12))
    def ask_what_comes(self, count):
        before = list(self.queue.upcoming(99))
        assert self.queue.upcoming(count) == before[:count] == self.model.upcoming(count)
        assert {r.arrival for r in before} == {e.arrival for e in self.model.waiting()}

    @rule(tenant=st.sampled_from(TENANTS), number=st.integers(0, 99))
    def ask_who_makes_way(self, tenant, number):
        assert self.queue.shed(tenant) in self.model.sheds(tenant)
        request = self.some(number, lambda e: e.queued and not e.seated)
        if request is not None:
            running = [r for r in self.requests if self.entry(r).seated]
            victim = self.queue.seat_victim(request, running)
            assert victim in self.model.seat_victims(request)

    @invariant()
    def agrees(self):
        if not hasattr(self, "queue"):
            return
        self.queue.check()
        waiting = self.model.waiting()
        assert self.queue.num_waiting == len(waiting)
        for tenant in TENANTS:
            of_tenant = [e for e in waiting if e.request.tenant == tenant]
            assert self.queue.num_waiting_of(tenant) == len(of_tenant)
        for request in self.requests:
            assert (request in self.queue) == self.entry(request).queued
            assert self.queue.overdue(request) == self.model.overdue(request)
        assert self.queue.num_tenants == len(self.model.accounts)

    def teardown(self):
        """Everybody is served in the end, in the same order, and then nobody is remembered."""
        if not hasattr(self, "queue"):
            return
        while self.queue.num_waiting:
            before = self.queue.num_waiting
            self.schedule([("finish prefill", 7, None, 0)] * 9)
            assert self.queue.num_waiting < before
        while self.requests:
            self.abort(0, True)
        self.push("a", 1.0, 0, 1)
        assert self.queue.num_tenants == 1
        self.agrees()


TestFairQueue = FairQueueMachine.TestCase
TestFairQueue.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("policy", ["fair", "fcfs"])
@pytest.mark.parametrize("limit", [50, 150, 1000])
def test_long_runs_give_the_same_answers(policy, limit):
    chance = random.Random(f"{policy} {limit}")
    for _ in range(12):
        machine = FairQueueMachine()
        machine.start(policy, limit, chance.choice([0, 20, 200]))
        max_waiting, max_running = chance.choice([3, 8, 20]), chance.choice([1, 3, 8])
        tenants = TENANTS[: chance.randint(1, 4)]
        for _ in range(400):
            _play_a_step(machine, chance, tenants, max_waiting, max_running)
            machine.agrees()
        machine.teardown()


def _play_a_step(machine, chance, tenants, max_waiting, max_running):
    """Mostly what a busy scheduler does, so that lines stay long and are served for long."""
    seated = [r for r in machine.requests if machine.entry(r).seated]
    if machine.queue.num_waiting < max_waiting and chance.random() < 0.8:
        weight, num_tokens = chance.choice([0.5, 1.0, 4.0]), chance.choice([1, 30, 500])
        machine.push(chance.choice(tenants), weight, chance.randint(-1, 1), num_tokens)
    for request in seated:
        machine.both("charge", request, 2)
    if len(seated) > max_running:
        machine.abort(chance.randrange(100), chance.random() < 0.5)
    events = chance.choice([[None], [None], EVENTS, ["abort", "unseat"]])
    machine.schedule(
        [
            (
                chance.choice(STEPS),
                chance.choice(COSTS),
                chance.choice(events),
                chance.randrange(99),
            )
            for _ in range(chance.randint(0, 6))
        ]
    )
    if chance.random() < 0.1:
        machine.load(chance.randrange(100), chance.choice(COSTS))
        machine.charge_tenant(chance.choice(TENANTS), chance.choice(COSTS))
    machine.ask_what_comes(chance.randint(0, 9))
    machine.ask_who_makes_way(chance.choice(TENANTS), chance.randrange(99))
