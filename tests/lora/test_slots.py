"""Slots: a version keeps its slot while it is used, and gives it up only when nobody does."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.lora.errors import AdapterError
from branchline.lora.slots import AdapterSlots, SlotLease

NUM_SLOTS = 3
DIGESTS = "abcde"
digests = st.sampled_from(DIGESTS)


def acquire(slots: AdapterSlots, digest: str) -> SlotLease:
    lease = slots.acquire(digest)
    assert lease is not None
    return lease


def test_one_version_one_slot() -> None:
    slots = AdapterSlots(2)
    assert (slots.add("a"), slots.add("b"), slots.add("a")) == (0, 1, 0)
    assert slots.digests == ["a", "b"]
    with pytest.raises(AdapterError, match="all 2 adapter slots are taken"):
        slots.add("c")
    assert "c" not in slots
    assert slots.acquire("c") is None


def test_a_version_is_leased_once_it_is_ready() -> None:
    slots = AdapterSlots(1)
    slots.register("a")
    assert "a" in slots
    states = [slots.state("a")]
    assert slots.acquire("a") is None
    slot = slots.start_load("a")
    states.append(slots.state("a"))
    assert slots.acquire("a") is None
    assert slots.num_free == 0
    slots.finish_load("a")
    states.append(slots.state("a"))
    assert states == ["absent", "loading", "ready"]
    assert acquire(slots, "a").slot == slot == slots.slot("a")
    slots.register("a")
    assert slots.state("a") == "ready", "to register it again changes nothing"


def test_a_leased_version_stays() -> None:
    slots = AdapterSlots(1)
    slots.add("a")
    first, second = acquire(slots, "a"), acquire(slots, "a")
    assert (first.slot, second.slot, slots.num_leases("a")) == (0, 0, 2)
    first.release()
    assert slots.evictable() == []
    with pytest.raises(AssertionError, match="a is leased"):
        slots.drop("a")
    second.release()
    assert slots.evictable() == ["a"]


def test_a_dropped_version_is_known_and_its_slot_free() -> None:
    slots = AdapterSlots(1)
    slots.add("a")
    slots.register("b")
    assert slots.drop("a") == 0
    assert (slots.num_free, slots.state("a"), "a" in slots) == (1, "absent", True)
    assert slots.acquire("a") is None
    assert slots.start_load("b") == 0
    assert slots.drop("b") == 0, "a load that failed"
    with pytest.raises(AssertionError, match="b has no slot"):
        slots.drop("b")
    slots.check()


def test_the_least_recently_used_comes_first() -> None:
    slots = AdapterSlots(4)
    for digest in "abcd":
        slots.add(digest)
    assert slots.evictable() == ["a", "b", "c", "d"]
    lease = acquire(slots, "a")
    assert slots.evictable() == ["b", "c", "d"]
    acquire(slots, "b").release()
    lease.release()
    assert slots.evictable() == ["c", "d", "b", "a"], "used until it was released"


@pytest.mark.parametrize("digest", ["ready", "loading", "unknown"])
def test_only_an_absent_version_is_loaded(digest: str) -> None:
    slots = AdapterSlots(3)
    slots.add("ready")
    slots.register("loading")
    slots.start_load("loading")
    with pytest.raises(AssertionError):
        slots.start_load(digest)
    if digest != "loading":
        with pytest.raises(AssertionError):
            slots.finish_load(digest)
    slots.check()


def test_a_lease_is_released_once() -> None:
    slots = AdapterSlots(1)
    slots.add("a")
    lease = acquire(slots, "a")
    lease.release()
    with pytest.raises(AssertionError):
        lease.release()
    slots.check()


@pytest.mark.parametrize("damage", ["slot lost", "slot held twice", "negative", "unregistered"])
def test_check_finds(damage: str) -> None:
    slots = AdapterSlots(2)
    slots.add("a")
    if damage == "slot lost":
        slots._free.pop()
    elif damage == "slot held twice":
        slots._free.append(0)
    elif damage == "negative":
        slots._num_leases["a"] = -1
    else:
        slots._registered.clear()
    with pytest.raises(AssertionError):
        slots.check()


class SlotMachine(RuleBasedStateMachine):
    """Loads, drops and leases in any order conserve slots and leases, and keep their order."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = AdapterSlots(NUM_SLOTS)
        for digest in DIGESTS:
            self.slots.register(digest)
        self.loading: dict[str, int] = {}
        self.ready: dict[str, int] = {}
        self.used: list[str] = []
        self.leases: list[SlotLease] = []

    @precondition(lambda self: len(self.loading) + len(self.ready) < NUM_SLOTS)
    @rule(data=st.data())
    def start_load(self, data: st.DataObject) -> None:
        held = {**self.loading, **self.ready}
        digest = data.draw(st.sampled_from([d for d in DIGESTS if d not in held]))
        slot = self.slots.start_load(digest)
        assert slot not in held.values()
        self.loading[digest] = slot

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), fails=st.booleans())
    def end_load(self, data: st.DataObject, fails: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.loading)))
        slot = self.loading.pop(digest)
        if fails:
            assert self.slots.drop(digest) == slot
        else:
            self.slots.finish_load(digest)
            self.ready[digest] = slot
            self.used.append(digest)

    @rule(digest=digests)
    def drop(self, digest: str) -> None:
        if digest in self.loading:
            return
        if digest in self.ready and not self._num_leases(digest):
            assert self.slots.drop(digest) == self.ready.pop(digest)
            self.used.remove(digest)
        else:
            with pytest.raises(AssertionError):
                self.slots.drop(digest)

    @rule(digest=digests)
    def acquire(self, digest: str) -> None:
        lease = self.slots.acquire(digest)
        assert (lease is not None) == (digest in self.ready)
        if lease is not None:
            assert lease.slot == self.ready[digest]
            self.leases.append(lease)
            self._use(digest)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        self._use(lease.digest)

    def _use(self, digest: str) -> None:
        self.used.remove(digest)
        self.used.append(digest)

    def _num_leases(self, digest: str) -> int:
        return sum(lease.digest == digest for lease in self.leases)

    @invariant()
    def conserved(self) -> None:
        self.slots.check()
        assert self.slots.num_free == NUM_SLOTS - len(self.loading) - len(self.ready)
        assert self.slots.evictable() == [d for d in self.used if not self._num_leases(d)]
        for digest in DIGESTS:
            assert self.slots.num_leases(digest) == self._num_leases(digest)
            assert (self.slots.state(digest) == "loading") == (digest in self.loading)
            assert (self.slots.state(digest) == "ready") == (digest in self.ready)


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
