"""The serving life: listen, watch the engine, drain on a signal, leave with the right status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

import uvicorn

from ..gateway.fleet.http_server import GuardedProtocol, HttpServer
from .app import create_app
from .fleet.member import Membership, membership
from .services import Services

EXIT_OK, EXIT_ENGINE_DEAD = 0, 1

# What is left for answers to reach their clients once nothing more will come.
FLUSH_SECONDS = 5
MAX_NAMES_SAID = 20

logger = logging.getLogger(__name__)


async def serve_http(
    services: Services,
    listener: socket.socket,
    stop: asyncio.Event,
    say: Callable[[str], None],
) -> int:
    """Serve on a bound socket until ``stop`` or the engine's end; returns the exit status."""
    http = HttpServer(_uvicorn_config(services))
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    watching = asyncio.create_task(services.supervisor.watch())
    monitoring = asyncio.create_task(services.monitor.run())
    try:
        async with membership(services.replica) as fleet:
            while not (http.started or serving.done()):
                await asyncio.sleep(0.01)
            fleet.listening()
            _announce(services, listener, say)
            await _first(stop, services.supervisor.failed, serving)
            return await _end(services, fleet, say)
    finally:
        http.should_exit = True
        for task in (watching, monitoring):
            task.cancel()
        await services.supervisor.stop()
        await asyncio.gather(serving, watching, monitoring, return_exceptions=True)


async def _end(services: Services, fleet: Membership, say: Callable[[str], None]) -> int:
    """Take nothing new and let what runs finish; the exit status."""
    if services.supervisor.failed.is_set():
        services.gate.close()
        say(f"the engine is gone: {services.supervisor.engine.exit_reason}")
        await _emptied(services, FLUSH_SECONDS)
        return EXIT_ENGINE_DEAD
    await fleet.announce_end()
    services.gate.close()
    await _drain(services, say)
    return EXIT_OK


async def _drain(services: Services, say: Callable[[str], None]) -> None:
    """Let running requests finish, within the time there is; end the rest with an error."""
    timeout = services.config.shutdown_timeout
    if not services.gate.empty.is_set():
        say(f"shutting down; running requests have {timeout:g} s")
    if await _emptied(services, timeout):
        say("shut down")
        return
    say("the time is up; ending what still runs")
    await services.supervisor.stop()
    await _emptied(services, FLUSH_SECONDS)


async def _emptied(services: Services, timeout: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(services.gate.empty.wait(), timeout)
    return services.gate.empty.is_set()


async def _first(stop: asyncio.Event, failed: asyncio.Event, serving: asyncio.Task[None]) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, failed)]
    try:
        await asyncio.wait({*waits, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _uvicorn_config(services: Services) -> uvicorn.Config:
    level = services.config.log_level
    return uvicorn.Config(
        create_app(services),
        loop="none",
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="info" if level == "debug" else "warning",
        access_log=level == "debug",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )


def _announce(services: Services, listener: socket.socket, say: Callable[[str], None]) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"serving on http://{shown}:{port}")
    models = services.catalog.models()
    for model in models[:MAX_NAMES_SAID]:
        kind = "base" if model.digest is None else f"adapter {model.digest[:12]}"
        say(f"  model {model.name} ({kind})")
    if len(models) > MAX_NAMES_SAID:
        say(f"  and {len(models) - MAX_NAMES_SAID} more")
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
        say(f"  http://{shown}:{port}{path}")
    say("  and /health /ready /metrics /version /openapi.json")
