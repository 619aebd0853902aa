"""Where responses are kept that a next one may go on from: this process, or the fleet's Redis."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from redis.exceptions import RedisError

from ...gateway.fleet.connection import RedisDown, RedisLink
from ...gateway.fleet.fair_turns import FairTurns
from ...gateway.fleet.kept_limits import MAX_FINDS, MAX_FINDS_OF_TENANT, KeptLimits
from ...gateway.fleet.kept_picking import FoundItems
from ...gateway.fleet.kept_redis import NoRoom, RedisResponses
from ...gateway.fleet.kept_responses import KeptResponse, pack, read_packed, unpack_items
from ..errors import ApiError

RETRY_SECONDS = 1


@dataclass(slots=True)
class StoreCounts:
    """What became of responses since the start, and what is in this process's memory now.

    ``num_no_room`` of ``num_not_kept`` met a Redis without room.
    """

    num_kept: int = 0
    num_not_kept: int = 0
    num_no_room: int = 0
    num_evicted: int = 0
    num_held: int = 0
    num_held_bytes: int = 0


class ResponseStore(Protocol):
    """Kept responses by tenant and id; nobody finds another tenant's."""

    counts: StoreCounts

    async def keep(self, tenant: str, kept: KeptResponse) -> bool:
        """Keep one for the time that responses are kept; False where that can't be done now."""

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """One that is kept; raises ApiError 503 where that is not to be known now."""

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        """Of one that is kept the items of these ids; raises as ``find``."""

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Forget one; whether there was one. Raises ApiError 503 as ``find``."""

    async def close(self) -> None:
        """Let go of what it is reached by."""


class MemoryStore:
    """Keeps responses in this process, packed.

    Over ``limits.max_bytes`` or ``max_number`` the tenant that holds most bytes loses its oldest:
    so one that stores much can't push out what others have.
    """

    def __init__(self, limits: KeptLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._turns = FairTurns(MAX_FINDS, MAX_FINDS_OF_TENANT)
        self._tenants: dict[str, OrderedDict[str, tuple[bytes, float]]] = {}
        self._num_bytes: dict[str, int] = {}
        self._times: OrderedDict[tuple[str, str], float] = OrderedDict()
        self.counts = StoreCounts()

    async def keep(self, tenant: str, kept: KeptResponse) -> bool:
        """See ``ResponseStore``."""
        limits = self._limits
        packed = await asyncio.to_thread(pack, kept, limits)
        counts = self.counts
        if packed is None or limits.max_number < 1:
            counts.num_not_kept += 1
            return False
        self._expire()
        self._drop(tenant, kept.id)
        while (
            counts.num_held_bytes + len(packed) > limits.max_bytes
            or counts.num_held >= limits.max_number
        ):
            self._evict()
        now = self._clock()
        self._tenants.setdefault(tenant, OrderedDict())[kept.id] = (packed, now)
        self._num_bytes[tenant] = self._num_bytes.get(tenant, 0) + len(packed)
        counts.num_kept += 1
        counts.num_held += 1
        counts.num_held_bytes += len(packed)
        self._times[tenant, kept.id] = now
        return True

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """See ``ResponseStore``."""
        async with self._turns.take(tenant):
            packed = self._packed(tenant, response_id)
            return None if packed is None else await asyncio.to_thread(read_packed, packed)

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        """See ``ResponseStore``."""
        async with self._turns.take(tenant):
            packed = self._packed(tenant, response_id)
            if packed is None:
                return None
            return await asyncio.to_thread(unpack_items, packed, names)

    async def delete(self, tenant: str, response_id: str) -> bool:
        """See ``ResponseStore``."""
        self._expire()
        return self._drop(tenant, response_id)

    async def close(self) -> None:
        """See ``ResponseStore``."""

    def check(self) -> None:
        """Assert that all counts are true."""
        held = {(tenant, name) for tenant, kept in self._tenants.items() for name in kept}
        assert held == set(self._times)
        for tenant, kept in self._tenants.items():
            assert kept
            assert self._num_bytes[tenant] == sum(len(p) for p, _ in kept.values())
        assert self._num_bytes.keys() == self._tenants.keys()
        assert self.counts.num_held == len(held) <= self._limits.max_number
        assert self.counts.num_held_bytes == sum(self._num_bytes.values())
        assert self.counts.num_held_bytes <= self._limits.max_bytes

    def _packed(self, tenant: str, response_id: str) -> bytes | None:
        self._expire()
        kept = self._tenants.get(tenant)
        return kept[response_id][0] if kept and response_id in kept else None

    def _expire(self) -> None:
        """Forget what has been kept long enough."""
        oldest = self._clock() - self._limits.ttl
        while self._times:
            (tenant, response_id), since = next(iter(self._times.items()))
            if since > oldest:
                break
            self._drop(tenant, response_id)

    def _evict(self) -> None:
        tenant = max(self._num_bytes, key=lambda name: self._num_bytes[name])
        self._drop(tenant, next(iter(self._tenants[tenant])))
        self.counts.num_evicted += 1

    def _drop(self, tenant: str, response_id: str) -> bool:
        kept = self._tenants.get(tenant)
        if kept is None or response_id not in kept:
            return False
        packed, _ = kept.pop(response_id)
        del self._times[tenant, response_id]
        self._num_bytes[tenant] -= len(packed)
        self.counts.num_held -= 1
        self.counts.num_held_bytes -= len(packed)
        if not kept:
            del self._tenants[tenant], self._num_bytes[tenant]
        return True


class FleetStore:
    """Keeps responses in the fleet's Redis, so that each replica finds them."""

    def __init__(self, link: RedisLink, responses: RedisResponses) -> None:
        self._link = link
        self._responses = responses
        self._turns = FairTurns(MAX_FINDS, MAX_FINDS_OF_TENANT)
        self.counts = StoreCounts()

    async def keep(self, tenant: str, kept: KeptResponse) -> bool:
        """See ``ResponseStore``."""
        try:
            is_kept = await self._responses.keep(tenant, kept)
        except NoRoom:
            is_kept = False
            self.counts.num_no_room += 1
        except (RedisDown, RedisError):
            is_kept = False
        self.counts.num_kept += is_kept
        self.counts.num_not_kept += not is_kept
        return is_kept

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """See ``ResponseStore``."""
        try:
            async with self._turns.take(tenant):
                return await self._responses.find(tenant, response_id)
        except (RedisDown, RedisError) as error:
            raise _away() from error

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        """See ``ResponseStore``."""
        try:
            async with self._turns.take(tenant):
                return await self._responses.find_items(tenant, response_id, names)
        except (RedisDown, RedisError) as error:
            raise _away() from error

    async def delete(self, tenant: str, response_id: str) -> bool:
        """See ``ResponseStore``."""
        try:
            return await self._responses.delete(tenant, response_id)
        except (RedisDown, RedisError) as error:
            raise _away() from error

    async def close(self) -> None:
        """See ``ResponseStore``."""
        await self._link.close()


def _away() -> ApiError:
    return ApiError(
        "Kept responses can't be reached now.",
        status=503,
        type="server_error",
        code="response_store_unavailable",
        headers={"retry-after": str(RETRY_SECONDS)},
    )
