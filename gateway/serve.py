"""``branchline gateway``: bind, serve until told to stop, let running streams finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import socket
import sys
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .access_log import write_stdout
from .app import ABORT
from .config import GatewayConfig
from .fleet.http_server import HttpServer
from .fleet.process import ListenError, bind, loop_factory, stop_signals
from .fleet_parts import StartError
from .services import GatewayServices, open_services

EXIT_OK, EXIT_FAILED = 0, 1

# What is left for answers to reach their clients once nothing more will come.
FLUSH_SECONDS = 5
SAY_SECONDS = 0.5
MAX_HEAD_BYTES = 1 << 16


class _Protocol(HttpToolsProtocol):
    """httptools, with a way to cut a connection from inside, and a bound on heads."""

    _num_head_bytes = 0
    _num_field_bytes = 0
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and self._is_in_head:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts trailers too, which come behind a body and are kept as well."""
        self._num_field_bytes += len(name) + len(value)
        if self._num_field_bytes > MAX_HEAD_BYTES:
            self.transport.abort()
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head, self._num_head_bytes = True, 0
        super().on_message_complete()

    def on_message_begin(self) -> None:
        self._num_field_bytes = 0
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions


def run(config: GatewayConfig) -> int:
    """Serve until told to stop; returns the exit status."""
    _configure_logging(config.log_level)
    _allow_many_files()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(config))
    except (StartError, ListenError) as error:
        print(f"branchline: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("branchline: interrupted", file=sys.stderr)
    return EXIT_FAILED


async def _serve(config: GatewayConfig) -> int:
    with bind(config.host, config.port) as listener, stop_signals() as stop:
        url = _url(listener)
        async with open_services(config, url) as services:
            _calm_collector()
            http = HttpServer(_uvicorn_config(services))
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            try:
                while not (http.started or serving.done()):
                    await asyncio.sleep(0.01)
                _announce(config, url)
                await _either(stop, serving, services.broken)
                if services.broken.is_set():
                    return EXIT_FAILED
                await _drain(services)
            finally:
                services.gate.close()
                http.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
    return EXIT_OK


async def _drain(services: GatewayServices) -> None:
    """Take nothing new, and let what runs finish within the time there is."""
    gate, timeout = services.gate, services.config.shutdown_timeout
    gate.close()
    if not gate.empty.is_set():
        _say(f"shutting down; {gate.num_inside} requests have {timeout:g} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gate.empty.wait(), timeout)
    if not gate.empty.is_set():
        _say("the time is up; ending what still runs")
        services.proxy.watchdog.stop_all()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gate.empty.wait(), FLUSH_SECONDS)
    _say("shut down")


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
        http=_Protocol,
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


def _announce(config: GatewayConfig, url: str) -> None:
    _say(f"serving on {url}")
    if config.redis is None:
        _say(
            f"{len(config.replicas)} static replicas and no Redis: limits, tenants and adapters "
            "are this gateway's own, not shared with others"
        )
    if not config.admin_keys and not config.keyless_admin:
        _say("no --admin-key: the admin API is off")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s gateway: %(message)s"
    )
    for noisy in ("asyncio", "httpx", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _say(text: str) -> None:
    """One line on stdout; where nobody reads it, nobody waits for that."""
    line = threading.Thread(target=_write, args=(f"branchline: {text}\n",), daemon=True)
    line.start()
    line.join(SAY_SECONDS)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        write_stdout(text)
