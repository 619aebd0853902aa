"""Requests that go on from a kept response: with its conversation they are routed and counted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from redis.exceptions import RedisError

from .body import ModelRequest
from .endpoints import RESPONSES, endpoint_of, responses_request
from .fleet.connection import RedisDown, RedisLink
from .fleet.fair_turns import FairTurns
from .fleet.identity import digest_key
from .fleet.kept_items import BadReference, reference_of, with_items
from .fleet.kept_limits import MAX_FINDS, MAX_FINDS_OF_TENANT, KeptLimits
from .fleet.kept_picking import FoundItems
from .fleet.kept_redis import RedisResponses
from .fleet.kept_responses import KeptResponse, Sealer
from .fleet.redis_names import RedisNames
from .fleet.responses_input import input_items

ANY_AGE_SECONDS = 10.0**9
"""How long responses are kept is the replicas' business."""
LINK_SECONDS = 1.0
"""How long one call to Redis may take; a response is megabytes at the most."""
WAIT_SECONDS = 2.0
"""How long a request waits for what was said before it, its turns included."""
_MAY_REFER = re.compile(rb'"id"|\\u')
"""In any body with a reference, whose key may be escaped: without it there is no second look."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``request`` with all that it stands for; without that where it is not ``is_whole``."""

    request: ModelRequest
    is_whole: bool = True


class KeptHistory:
    """Finds the fleet's kept responses, few at once and none for long.

    ``link`` is of its own: what is slow for large values must not stop limits, view and store.
    """

    def __init__(self, link: RedisLink, names: RedisNames, secret: str) -> None:
        limits = KeptLimits(ttl=ANY_AGE_SECONDS)
        self._responses = RedisResponses(link, names, Sealer(digest_key(secret)), limits)
        self._turns = FairTurns(MAX_FINDS, MAX_FINDS_OF_TENANT)

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        """A tenant's response; raises what ``RedisLink.run`` does, TimeoutError after a while."""
        async with asyncio.timeout(WAIT_SECONDS), self._turns.take(tenant):
            return await self._responses.find(tenant, response_id)

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        """Of a tenant's response the items of these ids; raises as ``find``."""
        async with asyncio.timeout(WAIT_SECONDS), self._turns.take(tenant):
            return await self._responses.find_items(tenant, response_id, names)


async def read_request(path: str, body: bytes, tenant: str, kept: KeptHistory | None) -> Reading:
    """What routing and limits need of a body; raises GatewayError 400.

    What goes on from kept responses, or refers to their items, is read with all that this stands
    for. Where that is not to be had it is read alone: a replica has the last word on whether there
    is such a response.
    """
    request = endpoint_of(path).parse(body)
    if path != RESPONSES:
        return Reading(request)
    given = _referring(body)
    previous = request.previous_response_id
    if previous is None and given is None:
        return Reading(request)
    alone = Reading(request, is_whole=False)
    if kept is None:
        return alone
    if given is None:
        given = msgspec.json.decode(body)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            whole = await _read_whole(given, previous, tenant, kept)
    except (RedisDown, RedisError, TimeoutError, BadReference):
        return alone
    return alone if whole is None else Reading(whole)


def _referring(body: bytes) -> dict[str, Any] | None:
    """The decoded body, an object, if any of its items stands for another."""
    if not _MAY_REFER.search(body):
        return None
    given: dict[str, Any] = msgspec.json.decode(body)
    refers = any(reference_of(item) is not None for item in input_items(given))
    return given if refers else None


async def _read_whole(
    given: dict[str, Any], previous: str | None, tenant: str, kept: KeptHistory
) -> ModelRequest | None:
    """With what was said before; None: that is not kept. Raises BadReference, and as ``find``."""
    before = None if previous is None else await kept.find(tenant, previous)
    if previous is not None and before is None:
        return None
    history = before.history if before is not None else []
    items = await with_items(input_items(given), history, partial(kept.find_items, tenant))
    return responses_request({**given, "input": items}, history)
