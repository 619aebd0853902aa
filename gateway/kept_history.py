"""Requests that go on from a kept response: with its conversation they are routed and counted."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from redis.exceptions import RedisError

from .body import ModelRequest
from .endpoints import RESPONSES, endpoint_of, responses_request
from .fleet.connection import RedisDown, RedisLink
from .fleet.identity import digest_key
from .fleet.kept_items import ITEM_REFERENCE, BadReference, Find, with_items
from .fleet.kept_limits import KeptLimits
from .fleet.kept_redis import RedisResponses
from .fleet.kept_responses import KeptResponse, Sealer
from .fleet.redis_names import RedisNames
from .fleet.responses_input import input_items

ANY_AGE_SECONDS = 10.0**9
"""How long responses are kept is the replicas' business."""
LINK_SECONDS = 1.0
"""How long one call to Redis may take; a response is megabytes at the most."""
_REFERENCE = ITEM_REFERENCE.encode()
MAX_FINDS = 4
"""Responses that are fetched and unpacked at a time, of tens of megabytes each."""
WAIT_SECONDS = 2.0
"""How long a request waits for what was said before it, its turns included."""


class KeptHistory:
    """Finds the fleet's kept responses, few at once and none for long.

    ``link`` is of its own: what is slow for large values must not stop limits, view and store.
    """

    def __init__(self, link: RedisLink, names: RedisNames, secret: str) -> None:
        limits = KeptLimits(ttl=ANY_AGE_SECONDS)
        self._responses = RedisResponses(link, names, Sealer(digest_key(secret)), limits)
        self._turns = asyncio.Semaphore(MAX_FINDS)

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """A tenant's response; raises what ``RedisLink.run`` does, TimeoutError after a while."""
        async with asyncio.timeout(WAIT_SECONDS), self._turns:
            return await self._responses.find(tenant, response_id)


async def read_request(
    path: str, body: bytes, tenant: str, kept: KeptHistory | None
) -> ModelRequest:
    """What routing and limits need of a body; raises GatewayError 400.

    What goes on from kept responses, or refers to their items, is read with all that this stands
    for. Where that is not to be had it is read alone: a replica has the last word on whether there
    is such a response.
    """
    request = endpoint_of(path).parse(body)
    previous = request.previous_response_id
    if kept is None or path != RESPONSES or (previous is None and _REFERENCE not in body):
        return request
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await _read_whole(body, previous, partial(kept.find, tenant)) or request
    except (RedisDown, RedisError, TimeoutError, BadReference):
        return request


async def _read_whole(body: bytes, previous: str | None, find: Find) -> ModelRequest | None:
    """With what was said before; None: that is not kept. Raises BadReference, and as ``find``."""
    before = None if previous is None else await find(previous)
    if previous is not None and before is None:
        return None
    history = before.history if before is not None else []
    given = msgspec.json.decode(body)
    items = await with_items(input_items(given), history, find)
    return responses_request({**given, "input": items}, history)
