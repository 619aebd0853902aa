"""Puts a view of the fleet together."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

from ..fleet.connection import RedisLink
from ..fleet.redis_names import RedisNames
from .direct_poller import DirectPoller
from .fleet_view import FleetView, KeyFollower, Ways
from .prober import HttpProber
from .redis_poller import RedisPoller
from .rules import HealthRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Where the fleet's members come from: Redis under ``names``, or ``urls`` without it."""

    link: RedisLink | None
    names: RedisNames
    urls: tuple[str, ...] = ()


def build_view(
    gateway_id: str,
    url: str,
    membership: Membership,
    session: aiohttp.ClientSession,
    secret: str,
    keys: KeyFollower | None = None,
) -> FleetView:
    """A view to be run; ``session`` and the link are the caller's to close."""
    rules, link = HealthRules(), membership.link
    redis = None if link is None else RedisPoller(link, membership.names, rules.forget_seconds)
    ways = Ways(
        direct=DirectPoller(session, secret),
        prober=HttpProber(session, secret),
        redis=redis,
        urls=tuple(url.rstrip("/") for url in membership.urls),
        keys=keys,
    )
    return FleetView(gateway_id, url, ways, rules=rules)
