"""Adapters in host memory: one arena, filled from formatted files beside the steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from ..kernels import ops
from .errors import AdapterError
from .extents import Extents
from .footprint import Footprint
from .formatted import FormattedHeader
from .greedy_dual import GreedyDual
from .tier_events import TierEvent, error_of
from .weights import AdapterWeights

MAX_READS = 4
"""Files that are read or wait to be; more would only hold memory."""

SEEK_SECONDS, BYTES_PER_SECOND = 1e-3, 1e9
"""What a file costs until it has been measured."""


@dataclass(slots=True)
class _Copy:
    """An adapter's place in the arena; ``reading`` while it is being filled."""

    offset: int
    weights: AdapterWeights
    reading: Future[int] | None
    started: float
    num_holds: int = 0


class HostAdapters:
    """Registered versions, by digest, and those of them that are in host memory.

    ``num_bytes`` is all that the copies take. ``pinned`` ones stay, ``reading`` are under way. A
    copy that something is copied from is held, and stays as long.
    """

    def __init__(
        self, num_bytes: int, device: torch.device, reads: ops.CopyThread | None = None
    ) -> None:
        self.num_bytes = num_bytes
        self.pinned: set[str] = set()
        self.reading: dict[str, None] = {}
        self.num_loads = self.num_evictions = 0
        self._arena = torch.empty(num_bytes, dtype=torch.uint8)
        self._is_pinned = device.type == "cuda" and num_bytes > 0
        if self._is_pinned:
            ops.pin_host(self._arena)
        self._extents = Extents(num_bytes)
        self._reads = reads or ops.CopyThread(torch.device("cpu"), "adapter-reads")
        self._headers: dict[str, FormattedHeader] = {}
        self._footprints: dict[str, Footprint] = {}
        self._copies: dict[str, _Copy] = {}
        self._uses = GreedyDual()
        self._failures: dict[str, str] = {}
        self._events: list[TierEvent] = []

    def __contains__(self, digest: str) -> bool:
        return digest in self._headers

    @property
    def num_used_bytes(self) -> int:
        """Bytes that copies take."""
        return self.num_bytes - self._extents.num_free

    @property
    def present(self) -> list[str]:
        """Versions whose copy is whole."""
        return [digest for digest, copy in self._copies.items() if copy.reading is None]

    @property
    def num_reading(self) -> int:
        """Files under way."""
        return len(self.reading)

    def register(self, digest: str, header: FormattedHeader) -> None:
        """Make a version known; raises AdapterError for one that could never be here."""
        if digest in self._headers:
            return
        room = self.num_bytes - sum(self._headers[key].num_bytes for key in self.pinned)
        if header.num_bytes > room:
            raise AdapterError(
                "adapter",
                f"takes {header.num_bytes} bytes of host memory, of {room} that can be had "
                "(--adapter-host-gb, and what is pinned)",
            )
        self._headers[digest] = header
        self._footprints[digest] = Footprint.of(header)

    def pin(self, digest: str) -> None:
        """Keep a version's copy once it is here.

        Pinned copies lie at the arena's end, so that they leave one stretch to the others.
        """
        if digest not in self.pinned and self.is_idle(digest):
            self._drop(digest)  # it is read again, to where the pinned ones lie
        self.pinned.add(digest)

    def require_pinnable(self, digest: str) -> None:
        """Raise AdapterError unless whatever else is registered finds room beside one more pin."""
        pinned = self.pinned | {digest}
        size = sum(self._headers[key].num_bytes for key in pinned)
        others = [h.num_bytes for key, h in self._headers.items() if key not in pinned]
        if size + max(others, default=0) > self.num_bytes:
            raise AdapterError(
                "tier",
                f"{size} bytes of host memory would be pinned, of {self.num_bytes} for all "
                "(--adapter-host-gb), and the largest other adapter would find no room",
            )

    def unregister(self, digest: str) -> int | None:
        """Forget a version; returns the bytes given back, None while its copy is in use."""
        if not self.is_idle(digest):
            return None
        freed = self._drop(digest)
        self._uses.forget(digest)
        self.pinned.discard(digest)
        self._failures.pop(digest, None)
        del self._headers[digest], self._footprints[digest]
        return freed

    def footprint(self, digest: str) -> Footprint:
        """What a version takes."""
        return self._footprints[digest]

    def num_bytes_of(self, digest: str) -> int:
        """What a version's copy takes."""
        return self._headers[digest].num_bytes

    def invocation_tokens(self, digest: str) -> tuple[int, ...] | None:
        """Those of an activated LoRA."""
        return self._headers[digest].invocation_tokens

    def weights(self, digest: str) -> AdapterWeights | None:
        """A version's copy, None unless it is here; to be held while it is read."""
        copy = self._copies.get(digest)
        if copy is None or copy.reading is not None:
            return None
        return copy.weights

    def is_reading(self, digest: str) -> bool:
        """Whether a version's file is under way."""
        return digest in self.reading

    def is_idle(self, digest: str) -> bool:
        """Whether nobody fills or reads a version's copy, if there is one."""
        copy = self._copies.get(digest)
        return copy is None or (copy.reading is None and not copy.num_holds)

    def hold(self, digest: str) -> None:
        """Keep a version's copy until ``let_go``."""
        self._copies[digest].num_holds += 1
        self._uses.use(digest)

    def let_go(self, digest: str) -> None:
        """End a hold."""
        self._copies[digest].num_holds -= 1

    def restore_seconds(self, digest: str) -> float:
        """What bringing a version here takes, as far as is known."""
        speed = self._reads.bytes_per_second or BYTES_PER_SECOND
        return SEEK_SECONDS + self._headers[digest].num_bytes / speed

    def advance(self, wanted: Sequence[str], needless: Iterable[str] = ()) -> None:
        """Finish reads and start those that are due, in the order of ``wanted``.

        ``needless`` are wanted versions that are on the device already. Room is made of copies
        that nobody wants, then of needless ones; for what is wanted first, also of others.
        """
        self._finish()
        if not wanted:
            return
        skipped = frozenset(needless)
        order: list[str] = []
        places = {digest: place for place, digest in enumerate(dict.fromkeys(wanted))}
        for digest, place in places.items():
            if digest in self._copies or digest in skipped or digest not in self._headers:
                continue
            if digest in self._failures or len(self.reading) >= MAX_READS:
                continue
            victims = partial(self._victims, order, places, skipped, place)
            if not self._start(digest, victims):
                return

    def read_if_free(self, digest: str) -> bool:
        """Read a version where nothing has to give way for it; whether it is under way, or soon."""
        if digest in self._copies or digest in self._failures:
            return self.is_reading(digest)
        return self.num_reading >= MAX_READS or self._start(digest, list)

    def _finish(self) -> None:
        for digest in list(self.reading):
            copy = self._copies[digest]
            assert copy.reading is not None
            if not copy.reading.done():
                continue
            error = error_of(copy.reading)
            copy.reading = None
            del self.reading[digest]
            seconds = time.monotonic() - copy.started
            size = self._headers[digest].num_bytes
            if error is None:
                self.num_loads += 1
                self._events.append(TierEvent(digest, "host", "loaded", size, seconds))
            else:
                self._drop(digest)
                self._failures[digest] = error
                self._events.append(TierEvent(digest, "host", "failed", size, seconds))

    def _victims(
        self, order: list[str], places: Mapping[str, int], skipped: frozenset[str], place: int
    ) -> list[str]:
        """Copies that could give way, the first to go first; ``order`` is worked out once."""
        if not order:
            order += self._uses.order(self._copies, self._cost)
        idle = [d for d in order if d not in self.pinned and d in self._copies and self.is_idle(d)]
        victims = [d for d in idle if d not in places]
        victims += [d for d in idle if d in places and d in skipped]
        if place == 0:
            later = [d for d in idle if d in places and d not in skipped]
            victims += sorted(later, key=lambda digest: -places[digest])
        return victims

    def _cost(self, digest: str) -> float:
        return self.restore_seconds(digest) / max(1, self._headers[digest].num_bytes)

    def _start(self, digest: str, victims: Callable[[], list[str]]) -> bool:
        header = self._headers[digest]
        offset = self._take(digest, self._extents)
        if offset is None:
            offset = self._take_from(victims(), digest)
        if offset is None:
            return False
        data = self._arena[offset : offset + header.num_bytes]
        read = self._reads.submit(lambda: header.read_into(data), after_launched=False)
        self._copies[digest] = _Copy(offset, header.weights_in(data), read, time.monotonic())
        self.reading[digest] = None
        self._uses.use(digest)
        return True

    def _take(self, digest: str, book: Extents) -> int | None:
        size = self._headers[digest].num_bytes
        return book.take(size, from_end=digest in self.pinned)

    def _take_from(self, victims: Sequence[str], digest: str) -> int | None:
        """Evict as many as it takes; nobody if all of them would not do."""
        number = self._num_to_evict(victims, digest)
        if number is None:
            others = [key for key in self._copies if key not in self.pinned]
            if self._num_to_evict(others, digest) is None:
                self._failures[digest] = "what is pinned leaves no room for it in one piece"
            return None
        for victim in victims[:number]:
            self._evict(victim)
        return self._take(digest, self._extents)

    def _num_to_evict(self, victims: Sequence[str], digest: str) -> int | None:
        """How many of these, in their order, must go; None if all of them would not do."""
        freed = sum(self._headers[victim].num_bytes for victim in victims)
        if self._extents.num_free + freed < self._headers[digest].num_bytes:
            return None
        book = self._extents.copy()
        for number, victim in enumerate(victims, start=1):
            book.give_back(self._copies[victim].offset)
            if self._take(digest, book) is not None:
                return number
        return None

    def evict(self, digest: str) -> int:
        """Drop an idle copy; returns its bytes, 0 if there is none."""
        assert self.is_idle(digest), f"{digest} is in use"
        if digest not in self._copies:
            return 0
        self._evict(digest)
        return self._headers[digest].num_bytes

    def _evict(self, digest: str) -> None:
        self._uses.gone(digest, self._cost(digest))
        size = self._drop(digest)
        self.num_evictions += 1
        self._events.append(TierEvent(digest, "host", "evicted", size))

    def _drop(self, digest: str) -> int:
        copy = self._copies.pop(digest, None)
        if copy is None:
            return 0
        self._extents.give_back(copy.offset)
        return self._headers[digest].num_bytes

    def failures(self) -> dict[str, str]:
        """Why reads failed, by digest, since this was asked last; then they may be tried again."""
        failures, self._failures = self._failures, {}
        return failures

    def events(self) -> list[TierEvent]:
        """What came and went since this was asked last."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the reading and give the arena back; whoever copies from it has ended."""
        self._reads.close()
        if self._is_pinned:
            ops.unpin_host(self._arena)
            self._is_pinned = False

    def check(self) -> None:
        """The arena holds the copies and nothing else."""
        self._extents.check()
        assert self._copies.keys() <= self._headers.keys()
        assert self.pinned <= self._headers.keys()
        assert all(copy.num_holds >= 0 for copy in self._copies.values())
        least = sum(self._headers[digest].num_bytes for digest in self._copies)
        assert self.num_used_bytes >= least
        assert bool(self.num_used_bytes) == bool(least)
