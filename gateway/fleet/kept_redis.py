"""Kept responses in the fleet's Redis: each tenant's in one slot, bounded in bytes and time.

All tenants' together are bounded by Redis' own ``maxmemory``: from nine tenths of it on, a new
response takes the place of its tenant's oldest, and is not kept where those are too few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from redis.exceptions import OutOfMemoryError

from .connection import Client, RedisLink
from .kept_limits import KeptLimits
from .kept_picking import FoundItems
from .kept_responses import KeptResponse, Sealer, pack, read_items, read_kept
from .redis_names import RedisNames
from .script import Script

# KEYS: the responses, their times, their bytes in all. The oldest go first, the new one never.
# Gives what the tenant holds then; 0: Redis has no room for it, and nothing but old ones is gone.
# Nothing is written before it is clear that there is room: Redis refuses a script's first write
# where its memory is at its limit, and no later one.
_KEEP = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, data, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local max_bytes, max_number = tonumber(ARGV[4]), tonumber(ARGV[5])
local total = tonumber(redis.call('GET', KEYS[3]) or '0')
local before = total
local function drop(old)
  total = total - redis.call('HSTRLEN', KEYS[1], old)
  redis.call('HDEL', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
local function room()
  local told = redis.pcall('INFO', 'memory')
  if type(told) ~= 'string' or not string.find(told, 'maxmemory_policy:noeviction') then
    return math.huge
  end
  local most = tonumber(string.match(told, 'maxmemory:(%d+)'))
  local used = tonumber(string.match(told, 'used_memory:(%d+)'))
  if not most or not used or most == 0 then return math.huge end
  return math.max(0, math.floor(most * tonumber(ARGV[6])) - used)
end
max_bytes = math.min(max_bytes, total + room())
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ttl, 'LIMIT', 0, 100)) do
  drop(old)
end
if redis.call('HEXISTS', KEYS[1], id) == 1 then drop(id) end
if #data > max_bytes then
  if total < before then redis.call('DECRBY', KEYS[3], before - total) end
  return 0
end
while total + #data > max_bytes or redis.call('ZCARD', KEYS[2]) >= max_number do
  local old = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not old then break end
  drop(old)
end
redis.call('HSET', KEYS[1], id, data)
redis.call('ZADD', KEYS[2], now, id)
redis.call('SET', KEYS[3], total + #data)
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl) end
return total + #data
""")
_FIND = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not kept or now - kept >= tonumber(ARGV[2]) then return false end
return redis.call('HGET', KEYS[1], ARGV[1])
""")
_DELETE = Script("""
local size = redis.call('HSTRLEN', KEYS[1], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DECRBY', KEYS[3], size)
return 1
""")


MAX_FILL = 0.9
"""Of Redis' own limit, where it has one and evicts nothing: the rest is for what a fleet can't do
without, and a fleet writes all the time."""


class NoRoom(Exception):  # noqa: N818 - Redis is well, and full
    """Redis has no memory left for a response."""


class RedisResponses:
    """Keeps, finds and deletes by tenant and id; each raises what ``RedisLink.run`` does."""

    def __init__(
        self, link: RedisLink, names: RedisNames, sealer: Sealer, limits: KeptLimits
    ) -> None:
        self._link = link
        self._names = names
        self._sealer = sealer
        self._limits = limits

    async def keep(self, tenant: str, kept: KeptResponse) -> bool:
        """Keep one; False where it is larger than one may be. Raises NoRoom too."""
        limits = self._limits
        sealed = await asyncio.to_thread(self._sealed, tenant, kept)
        if sealed is None:
            return False
        ttl = int(limits.ttl * 1000)
        arguments = (kept.id, sealed, ttl, limits.max_bytes, limits.max_number, MAX_FILL)
        keys = self._names.responses(tenant)

        async def keep(client: Client) -> int:
            try:
                return int(await _KEEP.run(client, keys, arguments))
            except OutOfMemoryError:  # what is kept can be found all the same
                return 0

        if not await self._link.run(keep):
            raise NoRoom("Redis is at its limit of memory")
        return True

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """A tenant's response; None where there is none of that id any more."""
        sealed = await self._fetch(tenant, response_id)
        return await asyncio.to_thread(read_kept, self._sealer, tenant, response_id, sealed)

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        """As ``find``, of the response's items only those of these ids."""
        sealed = await self._fetch(tenant, response_id)
        return await asyncio.to_thread(read_items, self._sealer, tenant, response_id, sealed, names)

    async def _fetch(self, tenant: str, response_id: str) -> bytes | None:
        keys = self._names.responses(tenant)[:2]
        arguments = (response_id, int(self._limits.ttl * 1000))
        sealed: bytes | None = await self._link.run(
            lambda client: _FIND.run(client, keys, arguments)
        )
        return sealed

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Forget it; whether it was there."""
        keys = self._names.responses(tenant)
        return bool(await self._link.run(lambda client: _DELETE.run(client, keys, [response_id])))

    def _sealed(self, tenant: str, kept: KeptResponse) -> bytes | None:
        packed = pack(kept, self._limits)
        return None if packed is None else self._sealer.seal(tenant, kept.id, packed)
