"""Slots: a version keeps its slot, and a leased one cannot go away."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.lora.errors import AdapterError
from branchline.lora.slots import AdapterSlots, SlotLease

NUM_SLOTS = 3
digests = st.sampled_from("abcde")


def test_one_version_one_slot() -> None:
    slots = AdapterSlots(2)
    assert (slots.add("a"), slots.add("b"), slots.add("a")) == (0, 1, 0)
    assert slots.digests == ["a", "b"]
    with pytest.raises(AdapterError, match="all 2 adapter slots are taken"):
        slots.add("c")
    assert "c" not in slots
    assert slots.acquire("c") is None


def test_a_leased_version_stays() -> None:
    slots = AdapterSlots(1)
    slots.add("a")
    first, second = slots.acquire("a"), slots.acquire("a")
    assert first is not None
    assert second is not None
    assert (first.slot, second.slot, slots.num_leases("a")) == (0, 0, 2)
    first.release()
    with pytest.raises(AdapterError, match="used by 1 requests"):
        slots.remove("a")
    second.release()
    assert slots.remove("a") == 0
    assert slots.num_free == 1
    with pytest.raises(AdapterError, match="holds no slot"):
        slots.remove("a")


def test_a_lease_is_released_once() -> None:
    slots = AdapterSlots(1)
    slots.add("a")
    lease = slots.acquire("a")
    assert lease is not None
    lease.release()
    with pytest.raises(AssertionError):
        lease.release()
    slots.check()


class SlotMachine(RuleBasedStateMachine):
    """Any order of adds, removes, acquires and releases conserves slots and leases."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = AdapterSlots(NUM_SLOTS)
        self.held: dict[str, int] = {}
        self.leases: list[SlotLease] = []

    @rule(digest=digests)
    def add(self, digest: str) -> None:
        if digest in self.held:
            assert self.slots.add(digest) == self.held[digest]
        elif len(self.held) < NUM_SLOTS:
            slot = self.slots.add(digest)
            assert slot not in self.held.values()
            self.held[digest] = slot
        else:
            with pytest.raises(AdapterError):
                self.slots.add(digest)

    @rule(digest=digests)
    def remove(self, digest: str) -> None:
        in_use = any(lease.digest == digest for lease in self.leases)
        if digest in self.held and not in_use:
            assert self.slots.remove(digest) == self.held.pop(digest)
        else:
            with pytest.raises(AdapterError):
                self.slots.remove(digest)

    @rule(digest=digests)
    def acquire(self, digest: str) -> None:
        lease = self.slots.acquire(digest)
        assert (lease is not None) == (digest in self.held)
        if lease is not None:
            assert lease.slot == self.held[digest]
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release()

    @invariant()
    def conserved(self) -> None:
        self.slots.check()
        assert self.slots.num_free == NUM_SLOTS - len(self.held)
        for digest in "abcde":
            leased = sum(lease.digest == digest for lease in self.leases)
            assert self.slots.num_leases(digest) == leased


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
