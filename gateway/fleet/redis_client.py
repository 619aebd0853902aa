"""Clients of redis-py for each kind of address; none of them tries anything twice."""

from __future__ import annotations

from typing import Any, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from .redis_url import RedisUrl

Client: TypeAlias = "Redis | RedisCluster"

SENTINEL_SECONDS = 0.25
"""How long one Sentinel may take; the next is asked then."""


def make_client(url: RedisUrl) -> tuple[Client, list[Redis]]:
    """A client that connects when it is first used, and further ones to close with it.

    It has no time limits of its own: ``RedisLink`` bounds whole calls.
    """
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.hosts]
        return RedisCluster(startup_nodes=nodes, ssl=url.is_tls, **_shared(url)), []
    if url.kind == "sentinel":
        return _sentinel_client(url)
    if url.kind == "unix":
        return Redis(unix_socket_path=url.path, db=url.db, **_shared(url)), []
    ((host, port),) = url.hosts
    return Redis(host=host, port=port, db=url.db, ssl=url.is_tls, **_shared(url)), []


def _sentinel_client(url: RedisUrl) -> tuple[Client, list[Redis]]:
    options = {
        **_shared(url),
        "username": url.options.get("sentinel_username"),
        "password": url.options.get("sentinel_password"),
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        "ssl": url.is_tls,
    }
    untyped: Any = Sentinel
    sentinel = untyped(list(url.hosts), sentinel_kwargs=options)
    client = sentinel.master_for(url.service, db=url.db, ssl=url.is_tls, **_shared(url))
    return client, list(sentinel.sentinels)


def _shared(url: RedisUrl) -> dict[str, Any]:
    """What all clients are made with. RESP2, so that answers have one shape in every version."""
    tls = {name: value for name, value in url.options.items() if name.startswith("ssl_")}
    return {
        "username": url.username,
        "password": url.password,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": None,
        **tls,
    }
