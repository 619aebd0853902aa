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
        in_host = self._cache.match(lease, key)
        problem = self._problem(lease.num_shared, is_in_host=bool(in_host))
        if problem is not None:
            lease.release()
            raise RequestError("prompt", problem)
        pin_id = uuid.uuid4().hex
        self._pins[pin_id] = _Pin(lease, lease.num_shared, self._clock() + ttl_seconds, target)
        self._count()
        return self._report(pin_id)

    def _problem(self, num_blocks: int, *, is_in_host: bool) -> str | None:
        """Why what was found can't be pinned."""
        if not num_blocks and is_in_host:
            return "is in host memory; a request for it brings it back to the device"
        if not num_blocks:
            return "is not in the prefix cache"
        num_held = sum(pin.num_blocks for pin in self._pins.values())
        if num_held + num_blocks <= self._max_blocks:
            return None
        return (
            f"needs {num_blocks} blocks; pins hold {num_held} and may hold "
            f"{self._max_blocks}, so that the longest request still fits"
        )

    def remove(self, pin_id: str) -> bool:
        """End a pin; False if there is none of that id."""
        return self._end([pin_id] if pin_id in self._pins else []) > 0

    def expire(self) -> None:
        """End the pins whose time is over."""
        now = self._clock()
        self._end([pin_id for pin_id, pin in self._pins.items() if pin.expires_at <= now])

    def clear(self) -> None:
        """End all of them."""
        self._end(list(self._pins))

    def _end(self, pin_ids: list[str]) -> int:
        for pin_id in pin_ids:
            self._pins.pop(pin_id).lease.release()
        if pin_ids:
            self._count()
        return len(pin_ids)

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
            cache_group=pin.target.cache_group,
        )
