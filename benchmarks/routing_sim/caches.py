"""A simulated replica's prefix blocks and adapters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

Tier = Literal["device", "host", "disk"]


class BlockCache:
    """Blocks by key, the least recently used that nobody needs goes first, tails before heads."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._uses: dict[bytes, int] = {}
        self._num_private = 0
        self.stored: dict[bytes, None] = {}
        self.removed: dict[bytes, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return self.num_blocks - len(self._idle) - len(self._uses) - self._num_private

    @property
    def num_idle(self) -> int:
        """Blocks that hold what nobody needs just now."""
        return len(self._idle)

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are held."""
        idle, uses = self._idle, self._uses
        return next(
            (i for i, key in enumerate(keys) if key not in uses and key not in idle), len(keys)
        )

    def take(self, keys: Sequence[bytes], num_private: int) -> bool:
        """Hold on to ``keys`` and as many new blocks, or change nothing and say so."""
        idle_hits = [key for key in keys if key in self._idle]
        if num_private > self.num_free + len(self._idle) - len(idle_hits):
            return False
        for key in keys:
            self._use(key)
        self._num_private += num_private
        while self.num_free < 0:
            key, _ = self._idle.popitem(last=False)
            self._tell(key, self.removed, self.stored)
        return True

    def commit(self, key: bytes) -> None:
        """A new block is computed: others may find it."""
        self._num_private -= 1
        if key not in self._uses and key not in self._idle:
            self._tell(key, self.stored, self.removed)
        self._use(key)

    def release(self, keys: Sequence[bytes], num_private: int) -> None:
        """Let go: of what was committed or found, and of new blocks that keep nothing."""
        self._num_private -= num_private
        for key in reversed(keys):
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
                self._idle[key] = None

    def _use(self, key: bytes) -> None:
        self._idle.pop(key, None)
        self._uses[key] = self._uses.get(key, 0) + 1

    def _tell(self, key: bytes, to: dict[bytes, None], instead_of: dict[bytes, None]) -> None:
        if key in instead_of:
            del instead_of[key]
        else:
            to[key] = None


class AdapterCache:
    """Adapters on the device and in host memory, both least recently used first out."""

    def __init__(self, num_device: int, num_host: int) -> None:
        self._device: OrderedDict[str, None] = OrderedDict()
        self._host: OrderedDict[str, None] = OrderedDict()
        self._num_device, self._num_host = num_device, num_host
        self._known: set[str] = set()
        self.version = 0

    def use(self, name: str) -> Tier:
        """Bring it to the device; where it was."""
        tier = self.tier(name)
        self._host.pop(name, None)
        self._device[name] = None
        self._device.move_to_end(name)
        self._known.add(name)
        if tier != "device":
            self.version += 1
        if len(self._device) > self._num_device:
            self._host[self._device.popitem(last=False)[0]] = None
        if len(self._host) > self._num_host:
            self._host.popitem(last=False)
        return tier

    def tier(self, name: str) -> Tier:
        """Its nearest copy; every adapter is on every replica's disk."""
        if name in self._device:
            return "device"
        return "host" if name in self._host else "disk"

    def tiers(self) -> dict[str, Tier]:
        """Of those that were ever used here."""
        return {name: self.tier(name) for name in self._known}
