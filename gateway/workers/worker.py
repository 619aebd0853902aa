"""A worker as its parent sees it: started, and started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable

from ..start_error import StartError
from .channel import FAILED, READY, STOP, Order, order_frame

MIN_PAUSE, MAX_PAUSE = 1.0, 30.0

_WORDS = (sys.executable, "-P", "-m", f"{__package__}.process")


class Worker:
    """Runs the process until ``stop``; ``up`` is set once it serves for the first time."""

    def __init__(self, order: Order, say: Callable[[str], None]) -> None:
        self.up = asyncio.Event()
        self._order, self._say = order, say
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._is_up = False
        self._why = ""

    async def run(self) -> int:
        """Start it, and again after every end; the status of the one that was stopped.

        Raises StartError when it ends before it has served at all.
        """
        pause = MIN_PAUSE
        while True:
            status = await self._run_once()
            if self._stopping.is_set() and not self._why:
                return status
            name = f"worker {self._order.number}"
            if not self.up.is_set():
                raise StartError(self._why or f"{name} ended with status {status} at its start")
            pause = MIN_PAUSE if self._is_up else min(MAX_PAUSE, 2 * pause)
            why = f"{self._why}; " if self._why else ""
            self._say(f"{name} ended with status {status}; {why}starts again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return 0

    async def _run_once(self) -> int:
        self._is_up, self._why = False, ""
        ours, theirs = socket.socketpair()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            with theirs:
                # A session of its own: Ctrl-C is the parent's, which stops them in order.
                self._process = process = await asyncio.create_subprocess_exec(
                    *_WORDS, stdin=theirs.fileno(), start_new_session=True
                )
            self._writer.write(order_frame(self._order))
            if self._stopping.is_set():  # while it was being started
                self._writer.write(STOP)
            await self._read(reader)
            return await process.wait()
        except OSError as error:
            self._why = f"no process can be started: {error.strerror or error}"
            return 1
        finally:
            self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            async for raw in reader:
                line = raw.decode(errors="replace").rstrip("\n")
                if line == READY:
                    self._is_up = True
                    self.up.set()
                elif line.startswith(FAILED):
                    self._why = line.removeprefix(FAILED)

    def stop(self) -> None:
        """Have it let its streams end and leave, and start it no more."""
        self._stopping.set()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(STOP)

    def kill(self) -> None:
        """SIGKILL, if it is there."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
