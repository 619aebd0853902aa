"""Which prefix keys this replica holds: those whose last block is in its prefix cache."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from ...engine.block_keys import KEY_BYTES as BLOCK_KEY_BYTES
from ...engine.cache_types import BlockChanges
from ...engine.key_news import KeyNews
from ...gateway.fleet.records import KeyEvents, KeySnapshot

Tie = tuple[bytes, bytes]
"""A prefix key, and the block key of the last block that its text needs."""

MAX_TIES = 131_072
"""About 30 MB; at 64 tokens a key, eight million tokens."""
MAX_BATCH_KEYS = 4096
MAX_BATCHES = 1024
MAX_BATCH_BYTES = 8 << 20


class KeyTable:
    """Ties of prefix keys to blocks, the blocks that are held, and what gateways were told.

    A block is only ever held with all that are before it, so the last one stands for them. A tie
    that is made again is the one that counts; those unused for longest go first. The batches kept
    to be told again are bounded, in number and bytes.
    """

    def __init__(self, epoch: str, *, max_ties: int = MAX_TIES) -> None:
        self.epoch = epoch
        self._max_ties = max_ties
        self._sequence = 0
        self._held: set[bytes] = set()
        self._block_of: OrderedDict[bytes, bytes] = OrderedDict()
        self._keys_of: dict[bytes, tuple[bytes, ...]] = {}
        self._told: set[bytes] = set()
        self._news = KeyNews()
        self._batches: deque[KeyEvents] = deque()
        self._num_batch_bytes = 0

    @property
    def num_ties(self) -> int:
        """Prefix keys known, held or not."""
        return len(self._block_of)

    @property
    def sequence(self) -> int:
        """Batches so far, the last of them with all that has changed by now."""
        while self._make_batch():
            pass
        return self._sequence

    @property
    def oldest_sequence(self) -> int:
        """The number of the first batch that can still be told."""
        return self._sequence + 1 - len(self._batches)

    def take_blocks(self, changes: BlockChanges) -> None:
        """Note what became of blocks."""
        if changes.cleared:
            self._held.clear()
            self._told.clear()
            self._news.cleared()
        for block in _split(changes.removed):
            self._held.discard(block)
            self._remove(self._keys_of.get(block, ()))
        for block in _split(changes.stored):
            self._held.add(block)
            self._store(self._keys_of.get(block, ()))

    def tie(self, ties: Iterable[Tie]) -> None:
        """Tie keys to blocks, held or yet to come."""
        for key, block in ties:
            before = self._block_of.get(key)
            self._block_of[key] = block
            self._block_of.move_to_end(key)
            if before == block:
                continue
            if before is not None:
                self._unlink(key, before)
            self._keys_of[block] = (*self._keys_of.get(block, ()), key)
            if block in self._held:
                self._store((key,))
            else:
                self._remove((key,))
        while len(self._block_of) > self._max_ties:
            key, block = self._block_of.popitem(last=False)
            self._unlink(key, block)
            self._remove((key,))

    def snapshot(self) -> KeySnapshot:
        """All keys held by now."""
        return KeySnapshot(
            epoch=self.epoch, sequence=self.sequence, keys=b"".join(sorted(self._told))
        )

    def events_after(self, epoch: str, sequence: int) -> list[KeyEvents] | None:
        """The batches behind ``sequence``; None if some are not there any more, or never were."""
        last = self.sequence
        if epoch != self.epoch or not 0 <= sequence <= last:
            return None
        missing = last - sequence
        if missing > len(self._batches):
            return None
        return list(self._batches)[len(self._batches) - missing :]

    def check(self) -> None:
        """Told is exactly what is held; for tests."""
        held = {key for key, block in self._block_of.items() if block in self._held}
        assert self._told == held
        links = {(key, block) for block, keys in self._keys_of.items() for key in keys}
        assert links == set(self._block_of.items())

    def _unlink(self, key: bytes, block: bytes) -> None:
        others = tuple(other for other in self._keys_of[block] if other != key)
        if others:
            self._keys_of[block] = others
        else:
            del self._keys_of[block]

    def _store(self, keys: Sequence[bytes]) -> None:
        new = [key for key in keys if key not in self._told]
        self._told.update(new)
        self._news.stored(new)

    def _remove(self, keys: Sequence[bytes]) -> None:
        gone = [key for key in keys if key in self._told]
        self._told.difference_update(gone)
        self._news.removed(gone)

    def _make_batch(self) -> bool:
        news = self._news.take(MAX_BATCH_KEYS)
        if news is None:
            return False
        self._sequence += 1
        batch = KeyEvents(
            epoch=self.epoch,
            sequence=self._sequence,
            cleared=news.cleared,
            removed=news.removed,
            stored=news.stored,
        )
        self._batches.append(batch)
        self._num_batch_bytes += _size(batch)
        while len(self._batches) > MAX_BATCHES or self._num_batch_bytes > MAX_BATCH_BYTES:
            self._num_batch_bytes -= _size(self._batches.popleft())
        return True


def _size(batch: KeyEvents) -> int:
    return len(batch.removed) + len(batch.stored)


def _split(joined: bytes) -> list[bytes]:
    return [
        joined[start : start + BLOCK_KEY_BYTES] for start in range(0, len(joined), BLOCK_KEY_BYTES)
    ]
