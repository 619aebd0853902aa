"""Which replica holds which prefix keys: one bit a replica in a mask a key."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..fleet.records import KeyEvents, KeySnapshot
from ..prefix_keys import KEY_BYTES

EXPECT_SECONDS = 10.0
STEP_KEYS = 2048


class KeyIndex:
    """What replicas have told of their prefix keys, and what is expected to be there soon.

    It keeps ``max_keys`` keys (about 130 bytes each, and 60 a replica that holds it) and
    ``max_expected`` expectations; keys beyond are as if nobody had told of them. All methods run on
    the event loop's thread.
    """

    def __init__(
        self,
        *,
        max_keys: int = 2_000_000,
        max_expected: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_keys = max_keys
        self._masks: dict[bytes, int] = {}
        self._positions: dict[str, tuple[str, int]] = {}
        self._held: dict[str, set[bytes]] = {}
        self._bits = _Bits()
        self._expected = _Expected(max_expected, clock)

    @property
    def num_keys(self) -> int:
        """Different keys that some replica holds."""
        return len(self._masks)

    @property
    def replica_ids(self) -> frozenset[str]:
        """Replicas of which anything is known or expected."""
        return self._bits.held

    def num_held(self, replica_id: str) -> int:
        """Keys that a replica holds."""
        return len(self._held.get(replica_id, ()))

    def position(self, replica_id: str) -> tuple[str, int] | None:
        """Epoch and sequence up to which a replica's events are known; None: not at all."""
        return self._positions.get(replica_id)

    def matched(self, keys: Sequence[bytes]) -> Mapping[str, int]:
        """How many of ``keys`` from the first on each replica holds; those with none are left out.

        What is expected at a replica counts as held.
        """
        alive, result = self._bits.all, dict[str, int]()
        masks, expected = self._masks, self._expected.current()
        for index, key in enumerate(keys):
            mask = masks.get(key, 0) | expected.get(key, 0)
            gone = alive & ~mask
            if gone:
                if index:
                    result.update(dict.fromkeys(self._bits.names(gone), index))
                alive &= mask
                if not alive:
                    return result
        if keys:
            result.update(dict.fromkeys(self._bits.names(alive), len(keys)))
        return result

    def apply(self, replica_id: str, events: KeyEvents) -> bool:
        """Take the next batch of events; False: some before it are missing, ask for a snapshot.

        Batches that are known already change nothing, and the first one of an epoch begins anew.
        """
        epoch, sequence = self._positions.get(replica_id, ("", 0))
        if events.epoch != epoch:
            if events.sequence != 1:
                return False
            self._remove(replica_id, list(self._held.get(replica_id, ())))
        elif events.sequence <= sequence:
            return True
        elif events.sequence != sequence + 1:
            return False
        if events.cleared:
            self._remove(replica_id, list(self._held.get(replica_id, ())))
        self._remove(replica_id, split_keys(events.removed))
        self._add(replica_id, split_keys(events.stored))
        self._positions[replica_id] = (events.epoch, events.sequence)
        return True

    def load(self, replica_id: str, snapshot: KeySnapshot) -> None:
        """Replace all that is known of a replica."""
        for _ in self.load_steps(replica_id, snapshot):
            pass

    def load_steps(self, replica_id: str, snapshot: KeySnapshot) -> Iterator[None]:
        """As ``load``, in steps of a few milliseconds; nothing else may be told of it meanwhile."""
        keys: set[bytes] = set()
        for start in range(0, len(snapshot.keys), STEP_KEYS * KEY_BYTES):
            part = split_keys(snapshot.keys[start : start + STEP_KEYS * KEY_BYTES])
            keys.update(part)
            self._add(replica_id, part)
            yield
        stale = list(self._held.get(replica_id, set()) - keys)
        for start in range(0, len(stale), STEP_KEYS):
            self._remove(replica_id, stale[start : start + STEP_KEYS])
            yield
        self._positions[replica_id] = (snapshot.epoch, snapshot.sequence)

    def drop(self, replica_id: str) -> None:
        """Forget a replica."""
        self._remove(replica_id, list(self._held.get(replica_id, ())))
        self._held.pop(replica_id, None)
        self._positions.pop(replica_id, None)
        bit = self._bits.release(replica_id)
        self._expected.forget(bit)

    def expect(self, replica_id: str, keys: Sequence[bytes], ttl: float = EXPECT_SECONDS) -> None:
        """Take ``keys`` as held there for ``ttl`` seconds, until its events say so themselves."""
        mask = self._bits.of(replica_id)
        self._expected.add(mask, keys, ttl)

    def _add(self, replica_id: str, keys: Iterable[bytes]) -> None:
        held, masks = self._held.setdefault(replica_id, set()), self._masks
        bit = self._bits.of(replica_id)
        for key in keys:
            mask = masks.get(key)
            if mask is None:
                if len(masks) >= self._max_keys:
                    continue
                masks[key] = bit
            else:
                masks[key] = mask | bit
            held.add(key)

    def _remove(self, replica_id: str, keys: Iterable[bytes]) -> None:
        held, masks = self._held.get(replica_id), self._masks
        if not held:
            return
        bit = self._bits.of(replica_id)
        for key in keys:
            if key in held:
                held.remove(key)
                rest = masks[key] & ~bit
                if rest:
                    masks[key] = rest
                else:
                    del masks[key]


class _Bits:
    """A bit for each replica; those of replicas that are gone are given again."""

    def __init__(self) -> None:
        self.all = 0
        self._by_name: dict[str, int] = {}
        self._names: dict[int, str] = {}

    @property
    def held(self) -> frozenset[str]:
        return frozenset(self._by_name)

    def of(self, name: str) -> int:
        bit = self._by_name.get(name)
        if bit is None:
            bit = ~self.all & (self.all + 1)  # the lowest one that is free
            self._by_name[name], self._names[bit] = bit, name
            self.all |= bit
        return bit

    def release(self, name: str) -> int:
        """The bit that the name had, 0 if none; what holds it must be cleared."""
        bit = self._by_name.pop(name, 0)
        self._names.pop(bit, None)
        self.all &= ~bit
        return bit

    def names(self, mask: int) -> Iterator[str]:
        while mask:
            bit = mask & -mask
            yield self._names[bit]
            mask ^= bit


class _Expected:
    """Keys that are expected somewhere, each until a time of its own."""

    def __init__(self, max_pairs: int, clock: Callable[[], float]) -> None:
        self._max_pairs = max_pairs
        self._clock = clock
        self._masks: dict[bytes, int] = {}
        self._until: OrderedDict[tuple[bytes, int], float] = OrderedDict()

    def add(self, bit: int, keys: Sequence[bytes], ttl: float) -> None:
        """The last ones of a long list go first, so that beginnings stay."""
        until = self._clock() + ttl
        for key in reversed(keys):
            self._until[key, bit] = until
            self._until.move_to_end((key, bit))
            self._masks[key] = self._masks.get(key, 0) | bit
        while len(self._until) > self._max_pairs:
            self._pop()

    def current(self) -> Mapping[bytes, int]:
        """Masks by key. Where lives differ, a short one may last as long as one given before."""
        if self._until:
            now = self._clock()
            while self._until and next(iter(self._until.values())) <= now:
                self._pop()
        return self._masks

    def forget(self, bit: int) -> None:
        """Expect nothing any more where ``bit`` stands for."""
        for pair in [pair for pair in self._until if pair[1] == bit]:
            del self._until[pair]
            self._clear(*pair)

    def _pop(self) -> None:
        pair, _ = self._until.popitem(last=False)
        self._clear(*pair)

    def _clear(self, key: bytes, bit: int) -> None:
        rest = self._masks[key] & ~bit
        if rest:
            self._masks[key] = rest
        else:
            del self._masks[key]


def split_keys(joined: bytes) -> list[bytes]:
    """Keys that stand one behind the other; a rest that is no whole key is left out."""
    end = len(joined) - len(joined) % KEY_BYTES
    return [joined[start : start + KEY_BYTES] for start in range(0, end, KEY_BYTES)]
