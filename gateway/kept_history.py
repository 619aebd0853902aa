"""Requests that go on from a kept response: with its conversation they are routed and counted."""

from __future__ import annotations

import asyncio

import msgspec
from redis.exceptions import RedisError

from .body import ModelRequest
from .endpoints import RESPONSES, endpoint_of, responses_request
from .fleet.connection import RedisDown, RedisLink
from .fleet.identity import digest_key
from .fleet.kept_limits import KeptLimits
from .fleet.kept_redis import RedisResponses
from .fleet.kept_responses import KeptResponse, Sealer
from .fleet.redis_names import RedisNames

ANY_AGE_SECONDS = 10.0**9
"""How long responses are kept is the replicas' business."""
LINK_SECONDS = 1.0
"""How long one call to Redis may take; a response is megabytes at the most."""
MAX_FINDS = 4
"""Responses that are fetched and unpacked at a time, of tens of megabytes each."""
WAIT_SECONDS = 2.0
"""How long a request waits for what was said before it, its turn included."""


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

    What goes on from a kept response is read with all that was said before it. Where that is not
    to be had it is read alone: a replica has the last word on whether there is such a response.
    """
    request = endpoint_of(path).parse(body)
    if request.previous_response_id is None or kept is None or path != RESPONSES:
        return request
    try:
        before = await kept.find(tenant, request.previous_response_id)
    except (RedisDown, RedisError, TimeoutError):
        return request
    if before is None:
        return request
    return responses_request(msgspec.json.decode(body), before.history)
