"""The server's end of the engine: starts the process and talks to it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from .config import EngineConfig
from .errors import EngineDeadError, EngineStartError
from .messages import (
    Abort,
    FromEngine,
    Generate,
    Progress,
    Start,
    Started,
    StartFailed,
    StepDone,
    Stop,
    ToEngine,
)
from .types import EngineInfo, EngineStats, GenerationRequest, TokenOutput

STOP_SECONDS = 10.0


class EngineClient:
    """One engine process. Made by ``start``; dead for good once ``dead`` is set."""

    def __init__(self, process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket) -> None:
        self.stats = EngineStats()
        self.dead = asyncio.Event()
        self.exit_reason: str | None = None
        self._process = process
        self._socket = socket
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._queues: dict[str, asyncio.Queue[TokenOutput | None]] = {}
        self._info: EngineInfo | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @classmethod
    async def start(
        cls, config: EngineConfig, on_progress: Callable[[str], None] | None = None
    ) -> EngineClient:
        """Spawn the engine and wait until it is up; raises EngineStartError with the reason."""
        directory = tempfile.mkdtemp(prefix="branchline-")
        address = f"ipc://{Path(directory, 'engine')}"
        socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        socket.set_hwm(0)
        socket.linger = 0
        socket.bind(address)
        # -P: the current directory must not shadow installed packages.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "branchline.engine.process", address
        )
        client = cls(process, socket)
        try:
            await client._handshake(config, on_progress)
        except BaseException:
            await client.stop()
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return client

    async def _handshake(
        self, config: EngineConfig, on_progress: Callable[[str], None] | None
    ) -> None:
        self._send(Start(config))
        exited = asyncio.ensure_future(self._process.wait())
        try:
            while self._info is None:
                received = asyncio.ensure_future(self._socket.recv())
                await asyncio.wait({received, exited}, return_when=asyncio.FIRST_COMPLETED)
                if not received.done():
                    received.cancel()
                    raise EngineStartError(
                        f"the engine exited with status {exited.result()} while starting"
                    )
                self._take_startup(self._decoder.decode(received.result()), on_progress)
        finally:
            exited.cancel()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    def _take_startup(self, message: FromEngine, on_progress: Callable[[str], None] | None) -> None:
        if isinstance(message, StartFailed):
            raise EngineStartError(message.error)
        if isinstance(message, Progress) and on_progress is not None:
            on_progress(message.text)
        if isinstance(message, Started):
            self._info, self.stats = message.info, message.stats

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself when it came up."""
        assert self._info is not None
        return self._info

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        """The request's outputs, the last one with a finish reason.

        Leaving early (``aclose``, cancellation) aborts the request in the engine. Raises
        EngineDeadError when the engine process is or goes away.
        """
        if self.dead.is_set():
            raise EngineDeadError(self.exit_reason or "the engine is gone")
        queue: asyncio.Queue[TokenOutput | None] = asyncio.Queue()
        self._queues[request.request_id] = queue
        finished = False
        try:
            self._send(Generate(request))
            while not finished:
                output = await queue.get()
                if output is None:
                    raise EngineDeadError(self.exit_reason or "the engine is gone")
                finished = output.finish_reason is not None
                yield output
        finally:
            del self._queues[request.request_id]
            if not finished:
                self.abort(request.request_id)

    def abort(self, request_id: str) -> None:
        """Let the engine drop a request before its next step; unknown ids are no error."""
        if not self.dead.is_set():
            self._send(Abort(request_id))

    def _send(self, message: ToEngine) -> None:
        # Without a high-water mark a send on this socket is queued at once.
        self._socket.send(self._encoder.encode(message))

    async def _receive(self) -> None:
        while True:
            message = self._decoder.decode(await self._socket.recv())
            if isinstance(message, StepDone):
                self.stats = message.stats
                for output in message.outputs:
                    queue = self._queues.get(output.request_id)
                    if queue is not None:
                        queue.put_nowait(output)

    async def _watch(self) -> None:
        """Wait for the process to end, then end every request that it held."""
        await self._process.wait()
        self._mark_dead()

    def _mark_dead(self) -> None:
        """Say so once, to everyone who waits for the engine."""
        if self.dead.is_set():
            return
        stopped, status = self._stopping, self._process.returncode
        self.exit_reason = (
            "the engine was stopped" if stopped else f"the engine exited with {status}"
        )
        self.dead.set()
        for queue in self._queues.values():
            queue.put_nowait(None)

    async def stop(self) -> None:
        """Stop the process, by force if it does not leave in time, and close the socket."""
        self._stopping = True
        if self._process.returncode is None:
            self._send(Stop())
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._mark_dead()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
