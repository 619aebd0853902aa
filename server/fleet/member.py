"""A replica's membership: beats in Redis while it lives, a notice before it goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from redis.exceptions import RedisError

from ...gateway.fleet.connection import Client, RedisDown, RedisLink
from ...gateway.fleet.redis_names import RedisNames
from ...gateway.fleet.script import Script
from .keys_publisher import KeyPublisher
from .namesakes import Namesakes
from .replica import FleetReplica

BEAT_SECONDS = 0.25
NOTICE_SECONDS = 0.5
"""Between telling that it drains and refusing requests: gateways look a few times a second."""
PLACES_SECONDS = 60
OLDEST_MS = 60_000
"""How long a replica that says nothing stays listed, and what it serves."""
LINK_SECONDS = 0.25
AFTER_FAULT_SECONDS = 1.0

logger = logging.getLogger(__name__)

# Tells how it stands, forgets who is long gone. Answers whether what this replica serves is still
# known, and the last report under its name if that is not older than a lease.
_BEAT = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = redis.call('ZSCORE', KEYS[2], ARGV[1])
local report = ''
if last and now - last < 3000 then report = redis.call('HGET', KEYS[1], ARGV[1]) or '' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3], 'LIMIT', 0, 100)
for _, gone in ipairs(old) do
  redis.call('HDEL', KEYS[1], gone)
  redis.call('ZREM', KEYS[2], gone)
end
return {redis.call('EXPIRE', KEYS[3], ARGV[4]), report}
""")
_LEAVE = Script("""
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4])
""")


class FleetMember:
    """Beats over ``link``; Redis may be away at any time, and is told all again when it is back."""

    def __init__(self, replica: FleetReplica, link: RedisLink, names: RedisNames) -> None:
        self._replica = replica
        self._link = link
        self._names = names
        self._told_version: int | None = None
        self._namesakes = Namesakes(replica.replica_id)
        self._known_problems: set[type[RedisError]] = set()

    async def run(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.beat()
            except RedisError as error:
                self._complain(error)
            await asyncio.sleep(max(0.0, began + BEAT_SECONDS - loop.time()))

    async def beat(self) -> None:
        """Tell how the replica stands, and what it serves where that is new; Redis may be down."""
        with contextlib.suppress(RedisDown):
            is_known = await self._link.run(self._send_beat)
            version = self._replica.places.current.version
            if not is_known or version != self._told_version:
                await self._link.run(self._send_places)
                self._told_version = version

    def _complain(self, error: RedisError) -> None:
        """Say once what Redis has against the beats; they go on."""
        if type(error) not in self._known_problems:
            self._known_problems.add(type(error))
            logger.error("the fleet's Redis refuses this replica: %s", error)

    async def leave(self) -> None:
        """Take this replica off the list; while Redis is down its last beat ages there."""
        replica_id, names = self._replica.replica_id, self._names
        keys = [names.replicas, names.beats, names.adapters(replica_id), names.keys(replica_id)]
        with contextlib.suppress(RedisDown, RedisError):
            await self._link.run(lambda client: _LEAVE.run(client, keys, [replica_id]))

    async def _send_beat(self, client: Client) -> bool:
        replica, names = self._replica, self._names
        keys = [names.replicas, names.beats, names.adapters(replica.replica_id)]
        report = replica.report()
        encoded = msgspec.json.encode(report)
        ours = replica.replica_id
        arguments: list[str | bytes | int] = [ours, encoded, OLDEST_MS, PLACES_SECONDS]
        is_known, last = await _BEAT.run(client, keys, arguments)
        self._namesakes.note(last, report.epoch)
        return bool(is_known)

    async def _send_places(self, client: Client) -> None:
        key = self._names.adapters(self._replica.replica_id)
        places = msgspec.json.encode(self._replica.places.current)
        await client.set(key, places, ex=PLACES_SECONDS)


Work = Callable[[], Awaitable[None]]


async def _keep_running(work: Work) -> None:
    """Run until cancelled, over faults of ours: a replica that falls silent is taken for dead."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("the fleet's part of this server failed; it goes on")
        await asyncio.sleep(AFTER_FAULT_SECONDS)


class Membership:
    """What the serving life does for the fleet; without a fleet nothing."""

    def __init__(self, replica: FleetReplica | None, member: FleetMember | None) -> None:
        self._replica = replica
        self._member = member

    def listening(self) -> None:
        """Requests are taken from now on."""
        if self._replica is not None:
            self._replica.reporter.is_listening = True

    async def announce_end(self) -> None:
        """Tell that the replica drains, and give gateways the time to hear it."""
        if self._replica is None:
            return
        self._replica.reporter.is_draining = True
        if self._member is not None:
            await self._member.beat()
        await asyncio.sleep(NOTICE_SECONDS)


@asynccontextmanager
async def membership(replica: FleetReplica | None) -> AsyncIterator[Membership]:
    """Be a member of the fleet, and leave it at the end."""
    if replica is None:
        yield Membership(None, None)
        return
    options = replica.options
    link = None
    if options.redis_url is not None:
        link = RedisLink.open(options.redis_url, timeout=LINK_SECONDS)
    works: list[Work] = [replica.places.run]
    member = None
    if link is not None:
        names = RedisNames(options.name)
        member = FleetMember(replica, link, names)
        works.append(member.run)
        if replica.keys is not None:
            works.append(KeyPublisher(replica.keys.table, link, names, replica.replica_id).run)
    tasks = [asyncio.create_task(_keep_running(work)) for work in works]
    try:
        yield Membership(replica, member)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if replica.keys is not None:
            replica.keys.close()
        if member is not None:
            await member.leave()
        if link is not None:
            await link.close()
