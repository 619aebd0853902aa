"""Which adapter versions are on the device, in which slot, and who holds them: leases."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Literal

from .errors import AdapterError
from .greedy_dual import GreedyDual

SlotState = Literal["absent", "loading", "ready"]


class SlotLease:
    """One running request's hold on an adapter slot; ``release()`` it exactly once."""

    __slots__ = ("_slots", "digest", "slot")

    def __init__(self, slots: AdapterSlots, digest: str, slot: int) -> None:
        self._slots: AdapterSlots | None = slots
        self.digest = digest
        self.slot = slot

    def release(self) -> None:
        """Give the hold back."""
        assert self._slots is not None, "a slot lease is released once"
        self._slots._release(self.digest)
        self._slots = None


class AdapterSlots:
    """Slots of the adapter bank, by digest; a slot that is leased is never reassigned.

    A version that is registered is absent from the device, loading into a slot, or ready in it:

        absent -- start_load --> loading -- finish_load --> ready
           ^                        |                         |
           +--------- drop ---------+--- drop, if unleased ---+

    ``uses`` are told of every lease, so that who has to go can be chosen by them. Versions in
    ``pinned`` stay; those in ``reading`` are on their way to host memory, and then here.
    """

    def __init__(self, num_slots: int, clock: Callable[[], float] = time.time) -> None:
        self.num_slots = num_slots
        self.uses = GreedyDual()
        self.pinned: set[str] = set()
        self.reading: Collection[str] = ()
        self._clock = clock
        self._last_used: dict[str, float] = {}
        self._free = list(range(num_slots - 1, -1, -1))
        self._registered: dict[str, None] = {}
        self._unused: set[str] = set()
        self._slots: dict[str, int] = {}
        # Leases of those that are ready, the least recently used first.
        self._num_leases: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._registered

    @property
    def digests(self) -> list[str]:
        """All versions that are registered, oldest first."""
        return list(self._registered)

    @property
    def num_free(self) -> int:
        """Slots that no version holds."""
        return len(self._free)

    @property
    def num_ready(self) -> int:
        """Versions that can be leased."""
        return len(self._num_leases)

    def num_leases(self, digest: str) -> int:
        """Running requests that hold this version."""
        return self._num_leases.get(digest, 0)

    def state(self, digest: str) -> SlotState:
        """Where a version stands; one that is unknown is absent."""
        if digest in self._num_leases:
            return "ready"
        return "loading" if digest in self._slots else "absent"

    def slot(self, digest: str) -> int | None:
        """The slot of a version that is loading or ready."""
        return self._slots.get(digest)

    def register(self, digest: str) -> None:
        """Make a version known, absent from the device; one that is known stays as it is."""
        self._registered[digest] = None

    def unregister(self, digest: str) -> None:
        """Forget a version that is absent from the device."""
        assert digest not in self._slots, f"{digest} has a slot"
        self._registered.pop(digest, None)
        self._last_used.pop(digest, None)

    def last_used(self, digest: str) -> float | None:
        """When a version was leased or given back last, by the clock; None if it never was."""
        return self._last_used.get(digest)

    def add(self, digest: str) -> int:
        """Register a version that is on the device at once; the same one keeps its slot.

        Raises AdapterError when all slots are taken.
        """
        if digest in self._slots:
            return self._slots[digest]
        if not self._free:
            raise AdapterError("slots", f"all {self.num_slots} adapter slots are taken")
        self.register(digest)
        slot = self.start_load(digest)
        self.finish_load(digest)
        return slot

    def start_load(self, digest: str) -> int:
        """Give an absent version a free slot, which it can be loaded into."""
        assert digest in self._registered, f"{digest} is not registered"
        assert digest not in self._slots, f"{digest} has a slot"
        self._slots[digest] = self._free.pop()
        return self._slots[digest]

    def finish_load(self, digest: str) -> None:
        """Make a version that was loading ready to be leased."""
        assert self.state(digest) == "loading", f"{digest} is {self.state(digest)}"
        self._num_leases[digest] = 0
        self._unused.add(digest)
        self.uses.use(digest)

    def is_unused(self, digest: str) -> bool:
        """Whether nobody has leased a version since it was loaded."""
        return digest in self._unused

    def drop(self, digest: str) -> int:
        """Take the slot from a version that nobody leases; returns it."""
        assert digest in self._slots, f"{digest} has no slot"
        assert not self.num_leases(digest), f"{digest} is leased"
        self._num_leases.pop(digest, None)
        self._unused.discard(digest)
        slot = self._slots.pop(digest)
        self._free.append(slot)
        return slot

    def evictable(self) -> list[str]:
        """Versions that are ready, unpinned and unleased, the least recently used first."""
        leases = self._num_leases.items()
        return [d for d, num_leases in leases if not num_leases and d not in self.pinned]

    @property
    def unpinned(self) -> list[str]:
        """Versions that are ready and will go some day."""
        return [digest for digest in self._num_leases if digest not in self.pinned]

    def is_coming(self, digest: str) -> bool:
        """Whether a version is under way, from its file or to its slot."""
        return digest in self.reading or self.state(digest) == "loading"

    def acquire(self, digest: str) -> SlotLease | None:
        """A hold on a version's slot, None unless it is ready."""
        if digest not in self._num_leases:
            return None
        self._unused.discard(digest)
        self._use(digest, 1)
        return SlotLease(self, digest, self._slots[digest])

    def _release(self, digest: str) -> None:
        self._use(digest, -1)

    def _use(self, digest: str, num_leases: int) -> None:
        """Change the number of leases; it is the most recently used now."""
        self._num_leases[digest] = self._num_leases.pop(digest) + num_leases
        self._last_used[digest] = self._clock()
        self.uses.use(digest)

    def check(self) -> None:
        """Free and held slots are all there are, and no lease count is negative."""
        held = list(self._slots.values())
        assert sorted(self._free + held) == list(range(self.num_slots))
        assert self._unused <= self._num_leases.keys()
        assert self._num_leases.keys() <= self._slots.keys() <= self._registered.keys()
        assert self._last_used.keys() <= self._registered.keys()
        assert all(count >= 0 for count in self._num_leases.values())
