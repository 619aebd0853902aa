"""What knows the fleet, its tenants and its adapters, made and connected for one gateway."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.routing import BaseRoute

from .adapters.api import adapter_routes
from .adapters.build import build_adapters
from .adapters.directory import AdapterDirectory
from .config import GatewayConfig
from .fleet.connection import RedisLink
from .fleet.redis_names import RedisNames
from .kept_history import LINK_SECONDS, KeptHistory
from .limits.build import build_limits
from .limits.limiter import Limiter
from .routing.router import Router, policy_named
from .start_error import StartError
from .store.documents import StoreError
from .store.store import Store
from .tenants.api import tenant_routes
from .tenants.declared import read_tenants_file
from .tenants.directory import TenantDirectory
from .tenants.tenants import Tenants
from .view.build import Membership, build_view
from .view.fleet_view import FleetView
from .view.key_index import KeyIndex
from .view.key_reader import HttpKeyFetch, KeyReader

_CALL_SECONDS = 0.08
"""How long a call of limits, view and store to Redis may take."""


Works = Mapping[str, Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetParts:
    """All of it; ``routes`` are for admins, ``works`` has to run in the background."""

    view: FleetView
    router: Router
    index: KeyIndex
    adapters: AdapterDirectory
    store: Store
    tenants: TenantDirectory
    limiter: Limiter
    kept: KeptHistory | None = None
    routes: tuple[BaseRoute, ...] = ()
    works: Works = field(default_factory=dict)


async def open_fleet_parts(
    config: GatewayConfig, gateway_id: str, url: str, stack: AsyncExitStack
) -> FleetParts:
    """Connect; raises StartError. What is opened is closed by ``stack``, after the works."""
    names = RedisNames(config.fleet_name)
    link = _open_link(config, stack, _CALL_SECONDS)
    session = await stack.enter_async_context(_control_session(config))
    store = await _open_store(config, link, stack)
    index = KeyIndex()
    reader = KeyReader(index, names, HttpKeyFetch(session, config.fleet_secret))
    stack.push_async_callback(reader.close)
    membership = Membership(link=link, names=names, urls=config.replicas)
    view = build_view(gateway_id, url, membership, session, config.fleet_secret, reader)
    adapters = build_adapters(
        store, session, config.fleet_secret, view.snapshot, view.gateways, gateway_id
    )
    view.tell_demand(adapters.directory.demand)
    limiter, usage = build_limits(
        link,
        names,
        gateway_id=gateway_id,
        num_gateways=lambda: view.num_gateways,
        state_dir=config.state_dir,
    )
    stack.push_async_callback(limiter.close)
    return FleetParts(
        view=view,
        router=Router(policy_named(config.policy)),
        index=index,
        adapters=adapters.directory,
        store=store,
        tenants=TenantDirectory(store, allow_anonymous=config.allow_anonymous),
        limiter=limiter,
        kept=_open_kept(config, names, stack),
        routes=(*tenant_routes(Tenants(store), usage), *adapter_routes(adapters.admin)),
        works={
            "view": view.run(),
            "store": store.run(),
            "limits": limiter.run(),
            "placement": adapters.directory.run(),
        },
    )


def _open_link(config: GatewayConfig, stack: AsyncExitStack, timeout: float) -> RedisLink | None:
    if config.redis is None:
        return None
    try:
        link = RedisLink.open(config.redis, timeout=timeout)
    except ValueError as error:
        raise StartError(f"--redis: {error}") from error
    stack.push_async_callback(link.close)
    return link


def _open_kept(
    config: GatewayConfig, names: RedisNames, stack: AsyncExitStack
) -> KeptHistory | None:
    """The fleet's kept responses; None without a Redis, where only replicas have them."""
    link = _open_link(config, stack, LINK_SECONDS)
    return None if link is None else KeptHistory(link, names, config.fleet_secret)


def _control_session(config: GatewayConfig) -> aiohttp.ClientSession:
    """For polls, probes and adapters: apart from requests, so that neither waits for the other."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=config.limits.connect_timeout, sock_read=300
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


async def _open_store(
    config: GatewayConfig, link: RedisLink | None, stack: AsyncExitStack
) -> Store:
    try:
        path = config.tenants_file
        declare = None if path is None else read_tenants_file(path, os.environ)
        store = Store(link, config.fleet_name, config.state_dir, declare=declare)
        await store.start()
    except (StoreError, ValueError) as error:
        raise StartError(str(error)) from error
    stack.push_async_callback(store.close)
    return store
