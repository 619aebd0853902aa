"""One process of ``branchline up``: its output under its name, and started again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from .plan import ChildSpec

MIN_PAUSE, MAX_PAUSE = 1.0, 30.0
STOP_SECONDS = 45.0
MAX_LINE = 1 << 16

Say = Callable[[str, str], None]


class Child:
    """Runs a process until ``stop``; ``ready`` is set while its last start has come up."""

    def __init__(self, spec: ChildSpec, say: Say) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.ready_text = ""
        self.num_starts = 0
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def run(self) -> None:
        """Start it, and again after every end, with longer pauses while it does not come up."""
        pause = MIN_PAUSE
        while not self._stopping:
            status = await self._run_once()
            if self._stopping:
                return
            pause = MIN_PAUSE if self.ready.is_set() else min(MAX_PAUSE, 2 * pause)
            self.ready.clear()
            self._say(self.spec.name, f"ended with status {status}; starts again in {pause:g} s")
            await asyncio.sleep(pause)

    async def _run_once(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            *self.spec.words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.spec.environment},
            limit=MAX_LINE,
            start_new_session=True,  # Ctrl-C is ours: we stop them in order
        )
        self.num_starts += 1
        if self._stopping:  # while it was being started
            process.terminate()
        assert process.stdout is not None
        await self._read(process.stdout)
        return await process.wait()

    async def _read(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await output.readline()
            except ValueError:  # a line beyond the limit, which nobody reads anyway
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if self.spec.ready_line and self.spec.ready_line in line and not self.ready.is_set():
                self.ready_text = line
                self.ready.set()
            self._say(self.spec.name, line)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to its whole group if it is there after ``STOP_SECONDS``."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def run_to_end(spec: ChildSpec, say: Say) -> int:
    """One run of a process that ends by itself; returns its status."""
    child = Child(spec, say)
    return await child._run_once()
