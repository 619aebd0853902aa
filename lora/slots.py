"""Which slot each adapter version holds, as reference-counted leases."""

from __future__ import annotations

from .errors import AdapterError


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
    """Slots of the adapter bank by digest; a slot that is leased is never reassigned."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._num_leases: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._slots

    @property
    def digests(self) -> list[str]:
        """The versions that hold a slot, oldest first."""
        return list(self._slots)

    @property
    def num_free(self) -> int:
        """Slots that no version holds."""
        return len(self._free)

    def num_leases(self, digest: str) -> int:
        """Running requests that hold this version."""
        return self._num_leases.get(digest, 0)

    def add(self, digest: str) -> int:
        """Give a version a slot and return it; the same version keeps the one it has.

        Raises AdapterError when all slots are taken.
        """
        if digest in self._slots:
            return self._slots[digest]
        if not self._free:
            raise AdapterError("slots", f"all {self.num_slots} adapter slots are taken")
        self._slots[digest] = self._free.pop()
        self._num_leases[digest] = 0
        return self._slots[digest]

    def remove(self, digest: str) -> int:
        """Free a version's slot and return it; raises AdapterError if it is unknown or leased."""
        if digest not in self._slots:
            raise AdapterError("digest", f"{digest} holds no slot")
        if self._num_leases[digest]:
            raise AdapterError("digest", f"{digest} is used by {self._num_leases[digest]} requests")
        del self._num_leases[digest]
        slot = self._slots.pop(digest)
        self._free.append(slot)
        return slot

    def acquire(self, digest: str) -> SlotLease | None:
        """A hold on a version's slot, None while it has none."""
        slot = self._slots.get(digest)
        if slot is None:
            return None
        self._num_leases[digest] += 1
        return SlotLease(self, digest, slot)

    def _release(self, digest: str) -> None:
        self._num_leases[digest] -= 1

    def check(self) -> None:
        """Free and held slots are all there are, and no lease count is negative."""
        held = list(self._slots.values())
        assert sorted(self._free + held) == list(range(self.num_slots))
        assert self._num_leases.keys() == self._slots.keys()
        assert all(count >= 0 for count in self._num_leases.values())
