"""``branchline gateway``: bind, serve until told to stop, let running streams finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from .announce import announce, configure_logging, say, url_of
from .config import GatewayConfig
from .fleet.http_server import GuardedProtocol, HttpServer
from .fleet.process import ListenError, bind, loop_factory, stop_signals
from .services import GatewayServices, open_services
from .start_error import StartError
from .workers.siblings import Siblings

EXIT_OK, EXIT_FAILED = 0, 1

# What is left for answers to reach their clients once nothing more will come.
FLUSH_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a gateway serves: its socket, when to stop, whom to tell, and who is beside it."""

    listener: socket.socket
    stop: asyncio.Event
    tell_ready: Callable[[], None]
    say: Callable[[str], None] = say
    siblings: Siblings | None = None


def run(config: GatewayConfig) -> int:
    """Serve until told to stop; returns the exit status."""
    configure_logging(config.log_level)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve_alone(config))
    except (StartError, ListenError) as error:
        print(f"branchline: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("branchline: interrupted", file=sys.stderr)
    return EXIT_FAILED


async def _serve_alone(config: GatewayConfig) -> int:
    with bind(config.host, config.port) as listener, stop_signals() as stop:
        url = url_of(listener)
        seat = Seat(listener=listener, stop=stop, tell_ready=lambda: announce(config, url))
        status = await serve(config, seat)
    if status == EXIT_OK:
        say("shut down")
    return status


async def serve(config: GatewayConfig, seat: Seat) -> int:
    """Serve until ``seat.stop``, then drain; returns the exit status, raises StartError."""
    _allow_many_files()
    async with open_services(config, url_of(seat.listener), seat.siblings) as services:
        _calm_collector()
        http = HttpServer(_uvicorn_config(services))
        serving = asyncio.create_task(http.serve(sockets=[seat.listener]))
        try:
            while not (http.started or serving.done()):
                await asyncio.sleep(0.01)
            seat.tell_ready()
            await _either(seat.stop, serving, services.broken)
            if services.broken.is_set():
                return EXIT_FAILED
            await _drain(services, seat.say)
        finally:
            services.gate.close()
            http.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
    return EXIT_OK


async def _drain(services: GatewayServices, say: Callable[[str], None]) -> None:
    """Take nothing new, and let what runs finish within the time there is."""
    gate, timeout = services.gate, services.config.shutdown_timeout
    gate.close()
    if not gate.empty.is_set():
        say(f"shutting down; {gate.num_inside} requests have {timeout:g} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gate.empty.wait(), timeout)
    if not gate.empty.is_set():
        say("the time is up; ending what still runs")
        services.proxy.watchdog.stop_all()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gate.empty.wait(), FLUSH_SECONDS)


async def _either(stop: asyncio.Event, serving: asyncio.Task[None], broken: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, broken)]
    try:
        await asyncio.wait({*waits, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _uvicorn_config(services: GatewayServices) -> uvicorn.Config:
    return uvicorn.Config(
        services.app,
        loop="none",
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        h11_max_incomplete_event_size=None,
        backlog=4096,
    )


def _calm_collector() -> None:
    """Look for cycles seldom, since requests make few, and never among what the start made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _allow_many_files() -> None:
    """Two connections a request: take all the files that this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
