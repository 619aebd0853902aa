"""Prefixes that an admin keeps on the device for a time."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from .cache_types import PinReport, PrefixTarget
from .errors import RequestError
from .intake import Intake
from .prefix_cache import BlockLease, PrefixCache
from .types import DEFAULT_TENANT

MAX_PINS = 1000


@dataclass(frozen=True, slots=True)
class _Pin:
    lease: BlockLease
    num_blocks: int
    expires_at: float
    target: PrefixTarget


class Pins:
    """Leases without a request. Together they hold at most ``max_blocks`` blocks.

    Blocks that several pins have in common count for each of them.
    """

    def __init__(
        self, cache: PrefixCache, intake: Intake, max_blocks: int, clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._intake = intake
        self._max_blocks = max_blocks
        self._clock = clock
        self._pins: dict[str, _Pin] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks under a pin, each counted once."""
        return self._cache.blocks.pinned_of.total()

    def _count(self) -> None:
        """Have the blocks counted as nobody's use; whose they are does not change meanwhile."""
        leases = [pin.lease for pin in self._pins.values()]
        nodes = {node for lease in leases if lease.node is not None for node in lease.node.path()}
        pinned = self._cache.blocks.pinned_of
        pinned.clear()
        for node in nodes:
            pinned[node.tenant] += len(node.block_ids)

    def add(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Pin what is cached of a prefix; raises RequestError if that is nothing or too much."""
        if not ttl_seconds > 0:
            raise RequestError("ttl_seconds", "must be over 0")
        if len(self._pins) >= MAX_PINS:
            raise RequestError("pins", f"there are {MAX_PINS} pins, no more are allowed")
        key = self._intake.key_of(target)
        size = self._cache.block_size
        if not key.num_blocks:
            raise RequestError(
                "prompt",
                f"has {len(target.prompt_token_ids)} tokens; whole blocks of {size} are pinned",
            )
        lease = BlockLease(self._cache, target.tenant or DEFAULT_TENANT)
        self._cache.match(lease, key)
        num_blocks = lease.num_shared
        num_held = sum(pin.num_blocks for pin in self._pins.values())
        try:
            if not num_blocks:
                raise RequestError("prompt", "is not in the prefix cache")
            if num_held + num_blocks > self._max_blocks:
                raise RequestError(
                    "prompt",
                    f"needs {num_blocks} blocks; pins hold {num_held} and may hold "
                    f"{self._max_blocks}, so that the longest request still fits",
                )
        except RequestError:
            lease.release()
            raise
        pin_id = uuid.uuid4().hex
        self._pins[pin_id] = _Pin(lease, num_blocks, self._clock() + ttl_seconds, target)
        self._count()
        return self._report(pin_id)

    def remove(self, pin_id: str) -> bool:
        """End a pin; False if there is none of that id."""
        pin = self._pins.pop(pin_id, None)
        if pin is not None:
            pin.lease.release()
            self._count()
        return pin is not None

    def expire(self) -> None:
        """End the pins whose time is over."""
        now = self._clock()
        for pin_id in [pin_id for pin_id, pin in self._pins.items() if pin.expires_at <= now]:
            self.remove(pin_id)

    def clear(self) -> None:
        """End all of them."""
        for pin_id in list(self._pins):
            self.remove(pin_id)

    def reports(self) -> list[PinReport]:
        """All pins, the oldest first."""
        return [self._report(pin_id) for pin_id in self._pins]

    def _report(self, pin_id: str) -> PinReport:
        pin = self._pins[pin_id]
        return PinReport(
            pin_id=pin_id,
            num_tokens=pin.num_blocks * self._cache.block_size,
            num_blocks=pin.num_blocks,
            expires_in=max(0.0, pin.expires_at - self._clock()),
            adapter=pin.target.adapter,
            tenant=pin.target.tenant,
            salted=pin.target.cache_salt is not None,
        )
