"""Less device room than adapters: which are brought in, which give way, beside the steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

from ..kernels import ops
from .bank import AdapterBank
from .errors import AdapterError
from .footprint import Footprint, Kept
from .formatted import FormattedHeader
from .host_adapters import HostAdapters
from .slots import AdapterSlots
from .tier_events import EventKind, TierEvent, error_of

LAUNCH_SECONDS, BYTES_PER_SECOND = 1e-3, 4e9
"""What a load from host memory costs until it has been measured."""


class AdapterResidency:
    """Brings adapters from their files to host memory and from there to the bank, and back.

    Slots and room change hands on the caller's thread, within ``advance``; only the bytes are
    copied beside the steps, into room whose values no step uses until their adapter is ready.
    A load costs ``launch_seconds`` beside its bytes.
    """

    def __init__(
        self,
        bank: AdapterBank,
        slots: AdapterSlots,
        host: HostAdapters,
        copies: ops.CopyThread | None = None,
        launch_seconds: float = LAUNCH_SECONDS,
    ) -> None:
        self.num_loads = self.num_evictions = 0
        self._bank = bank
        self._slots = slots
        self._host = host
        self._copies = copies or ops.CopyThread(bank.device, "adapter-copies")
        self._launch_seconds = launch_seconds
        self._loading: dict[str, tuple[Future[int], float]] = {}
        self._failures: dict[str, str] = {}
        self._events: list[TierEvent] = []

    @property
    def num_loading(self) -> int:
        """Adapters that are on their way, from a file or from host memory."""
        return len(self._loading) + self._host.num_reading

    def register(self, digest: str, header: FormattedHeader) -> None:
        """Make a version known; raises AdapterError for one that could never be on the device."""
        pinned = self._slots.pinned
        if digest not in self._slots:
            if len(pinned) >= self._bank.num_slots:
                raise AdapterError("adapter", "every slot is pinned (--max-loras)")
            kept = Kept.by(map(self._host.footprint, pinned))
            self._bank.require_possible(Footprint.of(header), kept)
        self._host.register(digest, header)
        self._slots.register(digest)

    def require_pinnable(self, digest: str) -> None:
        """Raise AdapterError unless whatever else is registered finds room beside one more pin."""
        pinned = self._slots.pinned | {digest}
        if len(pinned) >= self._bank.num_slots and len(self._slots.digests) > len(pinned):
            raise AdapterError("tier", "every slot but one is pinned (--max-loras)")
        kept = Kept.by(map(self._host.footprint, pinned))
        for other in self._slots.digests:
            if other not in pinned:
                self._bank.require_possible(self._host.footprint(other), kept)

    def unregister(self, digest: str) -> tuple[int, int] | None:
        """Forget a version; returns the bytes given back on the device and in host memory.

        None while somebody leases it or copies it: then it is to be tried again.
        """
        if digest in self._loading or self._slots.num_leases(digest):
            return None
        if not self._host.is_idle(digest):
            return None
        device_bytes = 0
        if self._slots.slot(digest) is not None:
            device_bytes = self._host.footprint(digest).num_bytes
            self._bank.unload(self._slots.drop(digest))
        self._slots.pinned.discard(digest)
        self._slots.uses.forget(digest)
        self._failures.pop(digest, None)
        self._slots.unregister(digest)
        host_bytes = self._host.unregister(digest)
        assert host_bytes is not None, "it was idle"
        return device_bytes, host_bytes

    def advance(self, wanted: Sequence[str], for_host: Sequence[str] = ()) -> list[str]:
        """Finish loads that are done and start those that are due; returns what became ready.

        ``wanted`` are digests in the order in which requests will want them, ready ones too, and
        loads start in that order. Room is made of adapters that are ready, that nobody leases,
        wants or has pinned, those first that are cheap to restore for their size and long unused;
        then of what is wanted later, the last first. What has just become ready and is wanted
        stays until the next call, so that its request has had the chance to lease it.
        ``for_host`` are wanted in host memory only. Never blocks; a load that fails is told by
        ``failures``.
        """
        ready = self._finish()
        if wanted or for_host or self._host.num_reading:
            here = [d for d in wanted if self._slots.state(d) != "absent"]
            self._host.advance([*wanted, *for_host], here)
            self._slots.reading = self._host.reading
        if wanted:
            self._start(wanted, ready)
        return ready

    def bring_if_free(self, digest: str) -> bool:
        """Bring a version as near as there is free room for; whether more may come of it."""
        if self._slots.state(digest) != "absent":
            return False
        if self._host.weights(digest) is None:
            return self._host.read_if_free(digest)
        if self._has_room(digest):
            self._load(digest)
        return False

    def _finish(self) -> list[str]:
        ready = []
        for digest, (copied, started) in list(self._loading.items()):
            if not copied.done():
                continue
            del self._loading[digest]
            self._host.let_go(digest)
            error = error_of(copied)
            seconds = time.monotonic() - started
            if error is None:
                self._slots.finish_load(digest)
                self.num_loads += 1
                ready.append(digest)
                self._note(digest, "loaded", seconds)
            else:
                self._bank.unload(self._slots.drop(digest))
                self._fail(digest, error)
        return ready

    def _start(self, wanted: Sequence[str], ready: Sequence[str]) -> None:
        places = {digest: place for place, digest in enumerate(dict.fromkeys(wanted))}
        victims: list[str] | None = None
        due = [digest for digest in places if self._is_due(digest)]
        for digest in due:
            if self._host.weights(digest) is None:
                continue
            if not self._has_room(digest):
                if victims is None:
                    victims = self._victims(places, ready)
                if not self._make_room(digest, victims, places):
                    return
            self._load(digest)

    def _has_room(self, digest: str) -> bool:
        footprint = self._host.footprint(digest)
        return self._slots.num_free > 0 and self._bank.num_to_evict(footprint, ()) == 0

    def _make_room(self, digest: str, victims: list[str], places: Mapping[str, int]) -> bool:
        """Evict as many as ``digest`` needs; nobody if all who may go would not do."""
        may_go = list(self._may_go(victims, places, digest))
        number = self._num_to_evict(digest, may_go)
        if number is None:
            is_first = not places[digest] and not self._loading
            if is_first and self._num_to_evict(digest, self._slots.unpinned) is None:
                self._fail(digest, "what is pinned leaves no room for it in one piece")
            return False
        for victim in may_go[:number]:
            victims.remove(victim)
            self.evict(victim)
        return True

    def _num_to_evict(self, digest: str, may_go: Sequence[str]) -> int | None:
        slots = [slot for victim in may_go if (slot := self._slots.slot(victim)) is not None]
        number = self._bank.num_to_evict(self._host.footprint(digest), slots)
        if number is None or (not slots and not self._slots.num_free):
            return None
        return number if self._slots.num_free else max(1, number)

    def _may_go(
        self, victims: Sequence[str], places: Mapping[str, int], digest: str
    ) -> Iterator[str]:
        """Who gives way to ``digest``: who is wanted later, and not one that was loaded in vain.

        Only for what is wanted first: else adapters whose requests wait for something else too
        would chase each other off the device.
        """
        place = places[digest]
        for victim in victims:
            if places.get(victim, len(places)) < place:
                return
            if place == 0 or victim not in places or not self._slots.is_unused(victim):
                yield victim

    def _is_due(self, digest: str) -> bool:
        """Whether a wanted adapter is to be loaded; one that nobody registered fails."""
        if self._slots.state(digest) != "absent" or digest in self._failures:
            return False
        if digest not in self._slots:
            self._failures[digest] = f"{digest} is not registered"
            return False
        return True

    def _victims(self, places: Mapping[str, int], ready: Sequence[str]) -> list[str]:
        """Adapters that could give way, the first to go first."""
        kept = {digest for digest in ready if digest in places}
        could = [digest for digest in self._slots.evictable() if digest not in kept]
        victims = self._slots.uses.order(could, self._cost)
        victims.sort(key=lambda digest: -places.get(digest, len(places)))
        return victims

    def _cost(self, digest: str) -> float:
        """Seconds a byte to have an adapter back; more where its file would have to be read."""
        size = max(1, self._host.footprint(digest).num_bytes)
        seconds = self._launch_seconds
        if self._host.weights(digest) is None:
            seconds += self._host.restore_seconds(digest)
        return seconds / size + 1 / (self._copies.bytes_per_second or BYTES_PER_SECOND)

    def evict(self, digest: str) -> int:
        """Take an unleased adapter off the device; returns the bytes it had there."""
        self._slots.uses.gone(digest, self._cost(digest))
        self._bank.unload(self._slots.drop(digest))
        self.num_evictions += 1
        self._note(digest, "evicted")
        return self._host.footprint(digest).num_bytes

    def _load(self, digest: str) -> None:
        weights = self._host.weights(digest)
        assert weights is not None
        slot = self._slots.start_load(digest)
        try:
            self._bank.reserve(slot, weights)
        except AdapterError as error:
            self._slots.drop(digest)
            self._fail(digest, str(error))
            return
        self._host.hold(digest)
        # After what is launched: a step whose launch failed midway has finished, and may yet run.
        copied = self._copies.submit(lambda: self._bank.write(slot, weights))
        self._loading[digest] = (copied, time.monotonic())

    def _fail(self, digest: str, error: str) -> None:
        self._failures[digest] = error
        self._note(digest, "failed")

    def _note(self, digest: str, kind: EventKind, seconds: float = 0.0) -> None:
        size = self._host.footprint(digest).num_bytes
        self._events.append(TierEvent(digest, "device", kind, size, seconds))

    def failures(self) -> dict[str, str]:
        """Why loads failed, by digest, since this was asked last; then they may be tried again."""
        failures, self._failures = self._failures, {}
        return self._host.failures() | failures

    def events(self) -> list[TierEvent]:
        """What came and went, in both tiers, since this was asked last."""
        events, self._events = self._events, []
        return self._host.events() + events

    def close(self) -> None:
        """End the copying; loads that have not begun fail."""
        self._copies.close()
        self._host.close()

    def check(self) -> None:
        """Slots, room and loads agree, and every adapter has the pages it should."""
        self._slots.check()
        self._bank.check()
        self._host.check()
        held: dict[int, str] = {}
        for digest in self._slots.digests:
            assert (digest in self._loading) == (self._slots.state(digest) == "loading")
            slot = self._slots.slot(digest)
            if slot is not None:
                held[slot] = digest
        assert held.keys() == self._bank.loaded_slots, "a slot is loaded that nobody holds"
        for slot, digest in held.items():
            expected = self._host.footprint(digest).num_pages
            for name, pool in self._bank.pools.items():
                assert len(pool.pages(slot)) == expected.get(name, 0)
