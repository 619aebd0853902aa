"""Residency as a state machine: any wishes, leases, copies and failures."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.lora.slots import SlotLease
from branchline.tests.support.residency_house import DIGESTS, House


class ResidencyMachine(RuleBasedStateMachine):
    """Any wishes, leases, copies and failures: slots and pages are conserved, the weights right."""

    num_slots = 3

    def __init__(self) -> None:
        super().__init__()
        self.house = House(self.num_slots)
        self.leases: list[SlotLease] = []
        self.failed: set[str] = set()
        self.copied: list[str] = []
        self.broken: list[str] = []
        self.in_flight: deque[str] = deque()

    @rule(wanted=st.lists(st.sampled_from([*DIGESTS, "nobody"]), max_size=8))
    def advance(self, wanted: list[str]) -> None:
        slots = self.house.slots
        before = {digest for digest in DIGESTS if slots.state(digest) == "ready"} | {*self.copied}
        lru = [*slots.evictable(), *self.copied]
        ready = self.house.residency.advance(wanted)
        assert ready == self.copied
        self.failed |= {*self.broken}
        kept = {digest for digest in ready if digest in wanted}
        self.copied, self.broken = [], []
        self._check_started(wanted, kept)
        self._check_evicted(wanted, before, [digest for digest in lru if digest not in kept])

    def _check_started(self, wanted: list[str], kept: set[str]) -> None:
        """In the order wanted, and all for which there was a place."""
        slots = self.house.slots
        order = list(dict.fromkeys(wanted))
        self.failed |= {*order} - {*DIGESTS}
        loading = [d for d in DIGESTS if slots.state(d) == "loading" and d not in self.in_flight]
        loading.sort(key=order.index)
        self.in_flight.extend(loading)
        assert len(self.in_flight) == len(self.house.copies.jobs)
        assert not self.failed & {*loading}
        for digest in order:
            if slots.state(digest) == "absent" and digest not in self.failed:
                assert not slots.num_free
                sooner = order[: order.index(digest)]
                spared = {d for d in order if sooner and slots.is_unused(d)}
                assert all(d in sooner or d in kept | spared for d in slots.evictable())

    def _check_evicted(self, wanted: list[str], before: set[str], lru: list[str]) -> None:
        """Nobody's while somebody's could be had, the least recently used, and none too many."""
        slots = self.house.slots
        evicted = {digest for digest in before if slots.state(digest) != "ready"}
        assert evicted <= {*lru}, "it was leased, or had just come"
        unwanted = [digest for digest in lru if digest not in wanted]
        gone = [digest for digest in unwanted if digest in evicted]
        assert gone == unwanted[: len(gone)]
        if evicted & {*wanted}:
            assert gone == unwanted
            last = max(wanted.index(d) for d in evicted & {*wanted})
            survivors = [d for d in lru if d in wanted and d not in evicted]
            survivors = [d for d in survivors if not slots.is_unused(d)]
            first = min(wanted.index(d) for d in evicted & {*wanted})
            assert all(wanted.index(d) < first for d in survivors)
            assert any(wanted.index(d) < last for d in wanted if slots.state(d) == "loading")
        if evicted:
            assert not slots.num_free or self.failed

    @precondition(lambda self: self.in_flight)
    @rule()
    def copy(self) -> None:
        self.house.copies.run()
        self.copied.append(self.in_flight.popleft())

    @precondition(lambda self: self.in_flight)
    @rule()
    def break_off(self) -> None:
        self.house.copies.fail()
        self.broken.append(self.in_flight.popleft())

    @rule()
    def drain_failures(self) -> None:
        assert self.house.residency.failures().keys() == self.failed
        self.failed = set()

    @rule(digest=st.sampled_from(DIGESTS))
    def acquire(self, digest: str) -> None:
        ready = self.house.slots.state(digest) == "ready"
        lease = self.house.slots.acquire(digest)
        assert (lease is not None) == ready
        if lease is not None:
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release()

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        self.house.check()
        for lease in self.leases:
            assert self.house.slots.slot(lease.digest) == lease.slot
            assert self.house.slots.state(lease.digest) == "ready"

    def teardown(self) -> None:
        house = self.house
        house.copies.run(len(house.copies.jobs))
        house.residency.advance([])
        for lease in self.leases:
            lease.release()
        for digest in house.slots.evictable():
            house.bank.unload(house.slots.drop(digest))
        house.residency.check()
        assert house.slots.num_free == self.num_slots
        assert all(pool.num_free == pool.num_pages for pool in house.bank.pools.values())


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
