"""Requests that go on from a kept response: with its conversation they are routed and counted."""

from __future__ import annotations

import msgspec
from redis.exceptions import RedisError

from .body import ModelRequest
from .endpoints import RESPONSES, endpoint_of, responses_request
from .fleet.connection import RedisDown, RedisLink
from .fleet.identity import digest_key
from .fleet.kept_limits import KeptLimits
from .fleet.kept_redis import RedisResponses
from .fleet.kept_responses import Sealer
from .fleet.redis_names import RedisNames

ANY_AGE_SECONDS = 10.0**9
"""How long responses are kept is the replicas' business."""


def kept_responses(link: RedisLink | None, names: RedisNames, secret: str) -> RedisResponses | None:
    """The fleet's kept responses; None without a Redis, where only replicas have them."""
    if link is None:
        return None
    limits = KeptLimits(ttl=ANY_AGE_SECONDS)
    return RedisResponses(link, names, Sealer(digest_key(secret)), limits)


async def read_request(
    path: str, body: bytes, tenant: str, kept: RedisResponses | None
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
    except (RedisDown, RedisError):
        return request
    if before is None:
        return request
    return responses_request(msgspec.json.decode(body), before.history)
