"""``branchline serve``: find the model, start the engine, serve HTTP until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..engine.errors import EngineStartError
from ..gateway.fleet.process import ListenError, bind, loop_factory, stop_signals
from ..gateway.fleet.tracing import Tracer, TracingError
from ..lora.errors import BranchlineError
from .adapters.hub import find_directory
from .adapters.registry import Registry
from .adapters.start import NamedSource, check_names, named_sources, start_adapters
from .adapters.state import StateDirectory, open_state
from .catalog import Catalog
from .config import ServeConfig
from .fleet.options import ReplicaIdentity, identify

if TYPE_CHECKING:
    from ..engine.client import EngineClient
    from .text.tokenizer import Tokenizer

EXIT_OK, EXIT_FAILED = 0, 1

# From so many on, a second process that formats adapters takes nothing from the engine.
MANY_CORES = 8

T = TypeVar("T")


class ServeError(BranchlineError):
    """Something about this machine that keeps the server from starting."""


def run(config: ServeConfig) -> int:
    """Serve until told to stop; returns the exit status."""
    # Read by OpenMP when torch comes in, in the engine's process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # One prompt is one thread's work; and the engine is started from this process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _configure_logging(config.log_level)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(config))
    except (BranchlineError, ListenError) as error:
        print(f"branchline: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("branchline: interrupted", file=sys.stderr)
    return EXIT_FAILED


async def _serve(config: ServeConfig) -> int:
    with (
        bind(config.host, config.port) as listener,
        stop_signals() as stop,
        open_state(config.state_dir) as state,
    ):
        opening = _open(config, state, identify(config.fleet, listener))
        server = await _unless(stop, _start(opening))
        if server is None:
            _say("stopped before the engine was up")
            return EXIT_OK
        return await server(listener, stop)


@dataclass(frozen=True, slots=True)
class _Opening:
    """What a server starts from, all of it found and read."""

    config: ServeConfig
    catalog: Catalog
    state: StateDirectory
    registry: Registry
    named: Sequence[NamedSource]
    identity: ReplicaIdentity


def _open(config: ServeConfig, state: StateDirectory, identity: ReplicaIdentity) -> _Opening:
    """Find the model's directory and the adapters', and read what was kept."""
    directory = find_directory(config.engine.model)
    catalog = Catalog(directory, config.served_model_names or (config.engine.model,))
    registry = state.read()
    check_names(registry, catalog)
    named = named_sources(config.adapters, catalog)
    engine = replace(config.engine, model=directory)
    return _Opening(replace(config, engine=engine), catalog, state, registry, named, identity)


Serving = Callable[[socket.socket, asyncio.Event], Coroutine[Any, Any, int]]


async def _start(opening: _Opening) -> Serving:
    """Start the engine, the tokenizer and the adapters; raises BranchlineError."""
    from .adapters.loader import AdapterLoader
    from .adapters.parts import AdapterParts
    from .adapters.text import TextStore
    from .fleet.fingerprint import fingerprint_model
    from .lifecycle import serve_http
    from .services import build_services, with_replica
    from .supervisor import EngineSupervisor
    from .text.template_runner import TemplateProcesses

    config, directory = opening.config, opening.config.engine.model
    async with AsyncExitStack() as stack:
        loader = AdapterLoader(num_workers=2 if (os.cpu_count() or 1) >= MANY_CORES else 1)
        stack.push_async_callback(loader.close)
        loader.start()
        templates = TemplateProcesses()
        stack.push_async_callback(templates.close)
        engine, tokenizer = await _start_engine(config)
        restart = partial(_new_engine, config) if config.restart_engine else None
        supervisor = EngineSupervisor(engine, restart)
        stack.push_async_callback(supervisor.stop)
        texts = await asyncio.to_thread(TextStore, directory, tokenizer, templates)
        parts = AdapterParts(opening.state, loader, texts)
        created = int(time.time())
        fingerprint = await asyncio.to_thread(
            fingerprint_model, config.engine, engine.info, tokenizer.chat_template
        )
        tracer = _open_tracer(config.otlp_endpoint)
        if tracer is not None:
            stack.push_async_callback(asyncio.to_thread, tracer.close)
        services = build_services(
            config, opening.catalog, tokenizer, supervisor, parts, created, fingerprint, tracer
        )
        services = with_replica(services, opening.identity, opening.state.blobs)
        stack.push_async_callback(services.grammars.close)
        stack.push_async_callback(services.responses.close)
        stack.push_async_callback(services.adapters.close)
        # Before that, so that nothing waits for them.
        stack.push_async_callback(loader.close)
        stack.push_async_callback(supervisor.stop)
        await start_adapters(services.adapters, opening.registry, opening.named, _say)
        rest = stack.pop_all()

    async def serve(listener: socket.socket, stop: asyncio.Event) -> int:
        async with rest:
            return await serve_http(services, listener, stop, _say)

    return serve


def _open_tracer(endpoint: str | None) -> Tracer | None:
    try:
        return None if endpoint is None else Tracer.open("branchline-server", endpoint)
    except TracingError as error:
        raise ServeError(str(error)) from error


async def _new_engine(config: ServeConfig) -> EngineClient:
    from ..engine.client import EngineClient
    from .start_progress import StartProgress

    with contextlib.closing(StartProgress(_say)) as progress:
        return await EngineClient.start(config.engine, progress)


async def _start_engine(config: ServeConfig) -> tuple[EngineClient, Tokenizer]:
    """Start the engine and, beside it, load the tokenizer; raises BranchlineError."""
    from .text.tokenizer import Tokenizer, read_chat_template

    template = None if config.chat_template is None else read_chat_template(config.chat_template)
    directory = config.engine.model
    since = time.monotonic()
    _say(f"starting the engine for {directory}")
    loading = asyncio.create_task(asyncio.to_thread(Tokenizer.from_directory, directory, template))
    starting = asyncio.create_task(_new_engine(config))
    try:
        done, _ = await asyncio.wait({loading, starting}, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    except BaseException:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, EngineStartError):
            await (await starting).stop()
        raise
    _say(f"the engine is up after {time.monotonic() - since:.1f} s")
    return starting.result(), loading.result()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``, or None when ``stop`` came first and cancelled it."""
    worker, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({worker, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        return None
    finally:
        stopped.cancel()


def _configure_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s server: %(message)s")
    for noisy in ("asyncio", "filelock", "httpx", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _say(text: str) -> None:
    print(f"branchline: {text}", flush=True)
