"""All parts of one gateway: made, connected, run and closed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from .access_log import AccessLog, LineBuffer
from .admin_check import AdminCheck
from .app import GatewayApp
from .body import BodyBudget
from .config import GatewayConfig
from .estimates import TokenEstimates
from .fleet.cors import with_cors
from .fleet.identity import digest_key
from .fleet.tracing import Tracer, TracingError
from .fleet_api import FleetApi
from .fleet_parts import FleetParts, open_fleet_parts
from .gate import Gate
from .generate import GenerateDoor, GenerateParts
from .jobs import JobMaker
from .kept_api import KeptDoor
from .metrics import GatewayMetrics
from .models_api import ModelsDoor
from .prefix_keys import PrefixHasher
from .proxy.guard import Watchdog
from .proxy.parts import ProxyParts
from .proxy.retry_budget import RetryBudget
from .proxy.turns import Turns
from .proxy.upstream import Upstream
from .start_error import StartError
from .store_metrics import StoreCollector
from .system_api import SystemApi
from .workers.siblings import Siblings

FIRST_LOOK_SECONDS = 2.0
"""How long the first requests wait for the fleet to be seen."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayServices:
    """A gateway that can answer; ``broken`` is set when one of its tasks ended by itself."""

    config: GatewayConfig
    app: ASGIApp
    gate: Gate
    proxy: ProxyParts
    metrics: GatewayMetrics
    broken: asyncio.Event


def assemble(
    config: GatewayConfig,
    fleet: FleetParts,
    version: str,
    access_log: AccessLog,
    tracer: Tracer | None = None,
    siblings: Siblings | None = None,
) -> GatewayServices:
    """The application over its parts; starts nothing. ``siblings`` are the other workers."""
    metrics, gate = _metrics_of(fleet), Gate(config.limits.max_streams)
    proxy = _proxy_parts(config, fleet, metrics)
    jobs = JobMaker(PrefixHasher(digest_key(config.fleet_secret)), TokenEstimates())
    generate = GenerateParts(
        proxy=proxy,
        tenants=fleet.tenants,
        limiter=fleet.limiter,
        jobs=jobs,
        fleet_secret=config.fleet_secret,
        bodies=BodyBudget(),
        kept=fleet.kept,
        tracer=tracer,
    )
    admin = AdminCheck(config.admin_keys, keyless=config.keyless_admin)
    app = GatewayApp(
        gate=gate,
        door=GenerateDoor(generate),
        models=ModelsDoor(fleet.tenants, fleet.adapters, fleet.view),
        kept=KeptDoor(fleet.tenants, fleet.limiter, proxy),
        admin=admin,
        metrics=metrics,
        access_log=access_log,
        routes=[
            *SystemApi(gate, fleet.view, metrics, version, admin, siblings).routes(),
            *FleetApi(proxy, jobs, fleet.kept).routes(),
            *fleet.routes,
        ],
    )
    return GatewayServices(
        config=config,
        app=with_cors(app, config.cors_origins),
        gate=gate,
        proxy=proxy,
        metrics=metrics,
        broken=asyncio.Event(),
    )


def _metrics_of(fleet: FleetParts) -> GatewayMetrics:
    metrics, redis_is_up = GatewayMetrics(), {"up": True, "away": False}
    metrics.watch(fleet.view.snapshot, lambda: redis_is_up.get(fleet.view.redis_state))
    metrics.registry.register(StoreCollector(fleet.store))
    fleet.view.subscribe(lambda change: metrics.changed(change.kind, change.reason))
    return metrics


def _proxy_parts(config: GatewayConfig, fleet: FleetParts, metrics: GatewayMetrics) -> ProxyParts:
    return ProxyParts(
        view=fleet.view,
        router=fleet.router,
        index=fleet.index,
        adapters=fleet.adapters,
        upstream=Upstream(config.fleet_secret, config.limits.connect_timeout),
        metrics=metrics,
        watchdog=Watchdog(),
        budget=RetryBudget(),
        limits=config.limits,
        turns=Turns(),
        shares_responses=fleet.kept is not None,
    )


class Tasks:
    """Background tasks that should never end; the first that does is told."""

    def __init__(self, broken: asyncio.Event) -> None:
        self._broken = broken
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run until ``close``."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("%s ended", task.get_name(), exc_info=task.exception())
            self._broken.set()

    async def close(self) -> None:
        """Cancel all of them, the last one first."""
        for task in reversed(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def _open_tracer(config: GatewayConfig, stack: AsyncExitStack) -> Tracer | None:
    if config.otlp_endpoint is None:
        return None
    try:
        tracer = Tracer.open("branchline-gateway", config.otlp_endpoint)
    except TracingError as error:
        raise StartError(str(error)) from error
    stack.push_async_callback(asyncio.to_thread, tracer.close)
    return tracer


@asynccontextmanager
async def open_services(
    config: GatewayConfig, url: str, siblings: Siblings | None = None
) -> AsyncIterator[GatewayServices]:
    """A running gateway that listens at ``url``; raises StartError."""
    from .. import __version__

    async with AsyncExitStack() as stack:
        gateway_id = f"gateway-{secrets.token_hex(6)}"
        fleet = await open_fleet_parts(config, gateway_id, url, stack)
        tracer = _open_tracer(config, stack)
        lines = LineBuffer()
        stack.callback(lines.flush)
        log = AccessLog(config.access_log, lines.add)
        services = assemble(config, fleet, __version__, log, tracer, siblings)
        if siblings is not None:
            await stack.enter_async_context(siblings.answering(services.metrics.render))
        stack.push_async_callback(services.proxy.upstream.close)
        tasks = Tasks(services.broken)
        stack.push_async_callback(tasks.close)
        tasks.run("access log", lines.run())
        tasks.run("watchdog", services.proxy.watchdog.run())
        for name, work in fleet.works.items():
            tasks.run(name, work)
        with suppress(TimeoutError):
            await asyncio.wait_for(fleet.view.looked.wait(), FIRST_LOOK_SECONDS)
        yield services
