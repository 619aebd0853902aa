"""Sends the batches of prefix key events into a stream in Redis, where all gateways read them."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec
from redis.exceptions import RedisError

from ...gateway.fleet.connection import Client, RedisDown, RedisLink
from ...gateway.fleet.records import KeyEvents
from ...gateway.fleet.redis_names import RedisNames
from .keys_table import KeyTable

EVERY_SECONDS = 0.15
MAX_ENTRIES = 512
"""About so many batches stay in the stream; who is further behind asks the replica itself."""
MAX_BATCHES = 32
EXPIRE_SECONDS = 600
FIELD = "e"

logger = logging.getLogger(__name__)


class KeyPublisher:
    """One replica's stream; an earlier one of that name ends when the first batch is sent.

    Readers find out by the batches' numbers where some are missing, as when Redis was away for
    long or came back empty, and ask the replica for the rest.
    """

    def __init__(
        self, table: KeyTable, link: RedisLink, names: RedisNames, replica_id: str
    ) -> None:
        self._table = table
        self._link = link
        self._stream = names.keys(replica_id)
        self._encoder = msgspec.msgpack.Encoder()
        self._sent = 0
        self._began = False
        self._known_problems: set[type[RedisError]] = set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self.publish()
            await asyncio.sleep(EVERY_SECONDS)

    async def publish(self) -> None:
        """Send what is new; what Redis does not take is sent the next time."""
        while (batches := self._table.events_after(self._table.epoch, self._sent)) != []:
            if batches is None:  # more than is kept: begin at the last one that is
                self._sent = self._table.oldest_sequence - 1
                continue
            batches = batches[:MAX_BATCHES]
            try:
                await self._link.run(partial(self._send, batches))
            except RedisDown:
                return
            except RedisError as error:
                self._complain(error)
                return
            self._began = True
            self._sent = batches[-1].sequence

    def _complain(self, error: RedisError) -> None:
        """Say once what Redis has against a batch; it is sent again and again."""
        if type(error) not in self._known_problems:
            self._known_problems.add(type(error))
            logger.error("Redis refuses this replica's prefix keys: %s", error)

    async def _send(self, batches: list[KeyEvents], client: Client) -> None:
        pipe = client.pipeline(transaction=False)
        if not self._began:
            pipe.delete(self._stream)
        for batch in batches:
            fields: dict[Any, Any] = {FIELD: self._encoder.encode(batch)}
            pipe.xadd(self._stream, fields, maxlen=MAX_ENTRIES, approximate=True)
        pipe.expire(self._stream, EXPIRE_SECONDS)
        await pipe.execute()
