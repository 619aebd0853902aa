"""Fewer device slots than adapters: which are brought in, which give way, beside the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future

from ..kernels import ops
from .bank import AdapterBank
from .errors import AdapterError
from .slots import AdapterSlots
from .weights import AdapterWeights


class AdapterResidency:
    """Brings adapters from host memory to the bank, and takes back the slots of others.

    ``host`` holds every registered version, in the bank's dtype. Slots and pages change hands on
    the caller's thread, within ``advance``; only the bytes are copied beside the steps, into pages
    whose values no step uses until their adapter is ready.
    """

    def __init__(
        self,
        bank: AdapterBank,
        slots: AdapterSlots,
        host: Mapping[str, AdapterWeights],
        copies: ops.CopyThread | None = None,
    ) -> None:
        assert all(digest in host for digest in slots.digests), "an adapter has no host copy"
        self._bank = bank
        self._slots = slots
        self._host = host
        self._copies = copies or ops.CopyThread(bank.device, "adapter-copies")
        self._loading: dict[str, Future[int]] = {}
        self._failures: dict[str, str] = {}
        self.num_loads = 0

    @property
    def num_loading(self) -> int:
        """Adapters that are on their way."""
        return len(self._loading)

    def num_bytes(self, digest: str) -> int:
        """What a load of this version copies."""
        return self._host[digest].num_bytes

    def advance(self, wanted: Sequence[str]) -> list[str]:
        """Finish loads that are done and start those that are due; returns what became ready.

        ``wanted`` are digests in the order in which requests will want them, ready ones too, and
        loads start in that order. A slot is taken from an adapter that is ready, that nobody
        leases and that nobody wants, the least recently used first; then from one that is wanted
        later, the last first. What has just become ready and is wanted keeps its slot until the
        next call, so that its request has had the chance to lease it. Never blocks; a load that
        fails is told by ``failures``.
        """
        ready = self._finish()
        self._start(wanted, ready)
        return ready

    def _finish(self) -> list[str]:
        ready = []
        for digest, copied in list(self._loading.items()):
            if not copied.done():
                continue
            del self._loading[digest]
            error = _error(copied)
            if error is None:
                self._slots.finish_load(digest)
                self.num_loads += 1
                ready.append(digest)
            else:
                self._bank.unload(self._slots.drop(digest))
                self._failures[digest] = error
        return ready

    def _start(self, wanted: Sequence[str], ready: Sequence[str]) -> None:
        places = {digest: place for place, digest in enumerate(dict.fromkeys(wanted))}
        absent = [digest for digest in places if self._is_due(digest)]
        victims = self._victims(places, ready) if len(absent) > self._slots.num_free else []
        for digest in absent:
            if not self._slots.num_free:
                victim = self._victim(victims, places, digest)
                if victim is None:
                    return
                victims.remove(victim)
                self._bank.unload(self._slots.drop(victim))
            self._load(digest)

    def _victim(self, victims: Sequence[str], places: Mapping[str, int], digest: str) -> str | None:
        """Who gives way to ``digest``: somebody wanted later, and not one that was loaded in vain.

        Only for what is wanted first: else adapters whose requests wait for something else too
        would chase each other off the device.
        """
        place = places[digest]
        for victim in reversed(victims):
            if places.get(victim, len(places)) < place:
                return None
            if place == 0 or victim not in places or not self._slots.is_unused(victim):
                return victim
        return None

    def _is_due(self, digest: str) -> bool:
        """Whether a wanted adapter is to be loaded; one that nobody registered fails."""
        if self._slots.state(digest) != "absent" or digest in self._failures:
            return False
        known = digest in self._slots and digest in self._host
        if not known:
            self._failures[digest] = f"{digest} is not registered"
        return known

    def _victims(self, places: Mapping[str, int], ready: Sequence[str]) -> list[str]:
        """Adapters that could give way, the first to go at the end."""
        kept = {digest for digest in ready if digest in places}
        victims = [digest for digest in self._slots.evictable() if digest not in kept]
        victims.reverse()
        victims.sort(key=lambda digest: places.get(digest, len(places)))
        return victims

    def _load(self, digest: str) -> None:
        weights = self._host[digest]
        slot = self._slots.start_load(digest)
        try:
            self._bank.reserve(slot, weights.num_pages)
        except AdapterError as error:
            self._slots.drop(digest)
            self._failures[digest] = str(error)
            return
        # Leases end when the last step that reads a slot has, so that no launched one reads this.
        self._loading[digest] = self._copies.submit(
            lambda: self._bank.write(slot, weights), after_launched=False
        )

    def failures(self) -> dict[str, str]:
        """Why loads failed, by digest, since this was asked last; then they may be tried again."""
        failures, self._failures = self._failures, {}
        return failures

    def close(self) -> None:
        """End the copying; loads that have not begun fail."""
        self._copies.close()

    def check(self) -> None:
        """Slots, pages and loads agree, and every adapter has the pages of its host copy."""
        self._slots.check()
        self._bank.check()
        held: dict[int, str] = {}
        for digest in self._slots.digests:
            assert (digest in self._loading) == (self._slots.state(digest) == "loading")
            slot = self._slots.slot(digest)
            if slot is not None:
                held[slot] = digest
        assert held.keys() == self._bank.loaded_slots, "a slot is loaded that nobody holds"
        for slot, digest in held.items():
            expected = self._host[digest].num_pages
            for name, pool in self._bank.pools.items():
                assert len(pool.pages(slot)) == expected.get(name, 0)


def _error(copied: Future[int]) -> str | None:
    try:
        error = copied.exception()
    except CancelledError:
        return "the engine is stopping"
    return None if error is None else f"{type(error).__name__}: {error}"


def pages_for(adapters: Iterable[Mapping[str, int]], num_slots: int) -> dict[str, int]:
    """Pages of each group that hold any ``num_slots`` of these adapters at once.

    Pages of one adapter need not lie side by side, so whatever set it is finds its pages free.
    """
    counts: dict[str, list[int]] = {}
    for num_pages in adapters:
        for name, count in num_pages.items():
            counts.setdefault(name, []).append(count)
    return {name: sum(sorted(held)[-num_slots:]) for name, held in counts.items()}
