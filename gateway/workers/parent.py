"""The parent of a gateway's workers: keeps the port, starts them, and leaves when all have."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..announce import announce, configure_logging, say, url_of
from ..config import GatewayConfig
from ..fleet.process import ListenError, stop_signals
from ..start_error import StartError
from .channel import Order
from .port import reserve
from .worker import Worker

EXIT_OK, EXIT_FAILED = 0, 1

LEAVE_SECONDS = 15.0
"""What workers have beyond ``--shutdown-timeout``, to send what they have and close all."""

MAX_SOCKET_PATH = 96

Tasks = Sequence["asyncio.Task[int]"]


def run_workers(config: GatewayConfig) -> int:
    """Serve in ``config.workers`` processes until told to stop; returns the exit status."""
    configure_logging(config.log_level)
    try:
        with reserve(config.host, config.port) as holder, _private_directory() as directory:
            url, port = url_of(holder), holder.getsockname()[1]
            orders = [
                Order(number=number, config=config.of_worker(number, port), directory=directory)
                for number in range(config.workers)
            ]
            return asyncio.run(_run(config, url, orders))
    except (StartError, ListenError) as error:
        print(f"branchline: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("branchline: interrupted", file=sys.stderr)
    return EXIT_FAILED


@contextmanager
def _private_directory() -> Iterator[Path]:
    """Of this user only, for the workers' sockets; raises StartError."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="branchline-gateway-"))
    except OSError as error:
        raise StartError(f"no temporary directory: {error}") from error
    try:
        if len(os.fsencode(directory)) > MAX_SOCKET_PATH:
            raise StartError(f"{directory} is too long a path for sockets; set TMPDIR")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _run(config: GatewayConfig, url: str, orders: Sequence[Order]) -> int:
    with stop_signals() as stop:
        workers = [Worker(order, say) for order in orders]
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        stopping = asyncio.create_task(stop.wait())
        try:
            await _until_up(workers, tasks, stopping)
            if not stopping.done():
                announce(config, url)
                await _first_of(stopping, *tasks)
            return await _leave(workers, tasks, config.shutdown_timeout)
        finally:
            stopping.cancel()
            for worker in workers:
                worker.stop()
                worker.kill()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _until_up(workers: Sequence[Worker], tasks: Tasks, stopping: asyncio.Task[bool]) -> None:
    """Wait until all serve, or have to stop; raises StartError when one can't start."""
    up = asyncio.gather(*(worker.up.wait() for worker in workers))
    try:
        await _first_of(up, stopping, *tasks)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        up.cancel()


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _leave(workers: Sequence[Worker], tasks: Tasks, timeout: float) -> int:
    """Have all let their streams end; whoever is still there then is killed."""
    for worker in workers:
        worker.stop()
    _, left = await asyncio.wait(tasks, timeout=timeout + LEAVE_SECONDS)
    if left:
        say(f"{len(left)} workers did not leave in time and are killed")
        for worker in workers:
            worker.kill()
    statuses = await asyncio.gather(*tasks)
    if any(statuses):
        return EXIT_FAILED
    say("shut down")
    return EXIT_OK
