"""Which store a server keeps its responses in."""

from __future__ import annotations

from ...gateway.fleet.connection import RedisLink
from ...gateway.fleet.kept_redis import RedisResponses
from ...gateway.fleet.kept_responses import Sealer
from ...gateway.fleet.redis_names import RedisNames
from ..config import ServeConfig
from .store import FleetStore, MemoryStore, ResponseStore

LINK_SECONDS = 1.0
"""How long one call to Redis may take; a response is megabytes at the most."""


def open_store(config: ServeConfig) -> ResponseStore:
    """The fleet's Redis where there is one, else this process's memory.

    The link is one of its own: what is slow for large values must not stop the replica's beats.
    """
    secret, url = config.access.fleet_secret, config.fleet.redis_url
    if secret is None or url is None:
        return MemoryStore(config.responses)
    link = RedisLink.open(url, timeout=LINK_SECONDS)
    names, sealer = RedisNames(config.fleet.name), Sealer(secret)
    return FleetStore(link, RedisResponses(link, names, sealer, config.responses))
