"""Kept responses in the fleet's Redis: each tenant's in one slot, bounded in bytes and time."""

from __future__ import annotations

import asyncio

from .connection import RedisLink
from .kept_limits import KeptLimits
from .kept_responses import KeptResponse, Sealer, pack, read_kept
from .redis_names import RedisNames
from .script import Script

# KEYS: the responses, their times, their bytes in all. The oldest go first, the new one never.
_KEEP = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, data, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local max_bytes, max_number = tonumber(ARGV[4]), tonumber(ARGV[5])
local total = tonumber(redis.call('GET', KEYS[3]) or '0')
local function drop(old)
  total = total - redis.call('HSTRLEN', KEYS[1], old)
  redis.call('HDEL', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
drop(id)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ttl, 'LIMIT', 0, 100)) do
  drop(old)
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
        """Keep one; False where it is larger than one may be."""
        limits = self._limits
        sealed = await asyncio.to_thread(self._sealed, tenant, kept)
        if sealed is None:
            return False
        ttl = int(limits.ttl * 1000)
        arguments = (kept.id, sealed, ttl, limits.max_bytes, limits.max_number)
        keys = self._names.responses(tenant)
        await self._link.run(lambda client: _KEEP.run(client, keys, arguments))
        return True

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """A tenant's response; None where there is none of that id any more."""
        keys = self._names.responses(tenant)[:2]
        arguments = (response_id, int(self._limits.ttl * 1000))
        sealed = await self._link.run(lambda client: _FIND.run(client, keys, arguments))
        return await asyncio.to_thread(read_kept, self._sealer, tenant, response_id, sealed)

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Forget it; whether it was there."""
        keys = self._names.responses(tenant)
        return bool(await self._link.run(lambda client: _DELETE.run(client, keys, [response_id])))

    def _sealed(self, tenant: str, kept: KeptResponse) -> bytes | None:
        packed = pack(kept, self._limits)
        return None if packed is None else self._sealer.seal(tenant, kept.id, packed)
