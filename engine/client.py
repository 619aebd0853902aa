"""The server's end of the engine: starts the process and talks to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable

import msgspec
import zmq
import zmq.asyncio

from .adapter_types import AdapterEvent
from .cache_types import BlockChanges
from .calls import EngineCalls
from .config import EngineConfig
from .errors import EngineDeadError, EngineStartError, RequestError
from .messages import (
    Abort,
    CallDone,
    FromEngine,
    Generate,
    GoOn,
    Hold,
    Start,
    Started,
    StartFailed,
    Starting,
    StepDone,
    Stop,
    ToEngine,
)
from .progress import OnProgress, tell_nobody
from .types import EngineInfo, EngineStats, GenerationRequest, TokenOutput
from .unread import UnreadOutputs, unread_bound

STOP_SECONDS = 10.0
LAST_WORDS_SECONDS = 0.5

logger = logging.getLogger(__name__)


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
        self._unread: dict[str, UnreadOutputs] = {}
        self.calls = EngineCalls(self._send_call)
        self.on_adapter_event: Callable[[AdapterEvent], None] = lambda event: None
        self.on_block_changes: Callable[[BlockChanges], None] = lambda changes: None
        self._info: EngineInfo | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @classmethod
    async def start(
        cls, config: EngineConfig, on_progress: OnProgress = tell_nobody
    ) -> EngineClient:
        """Spawn the engine and wait until it is up; raises EngineStartError with the reason."""
        with tempfile.TemporaryDirectory(
            prefix="branchline-", ignore_cleanup_errors=True
        ) as directory:
            try:
                client = await cls._spawn(f"ipc://{directory}/engine")
            except (OSError, zmq.ZMQError) as error:
                raise EngineStartError(f"the engine process can't be started: {error}") from error
            try:
                await client._handshake(config, on_progress)
            except BaseException:
                await client.stop()
                raise
        return client

    @classmethod
    async def _spawn(cls, address: str) -> EngineClient:
        socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        socket.set_hwm(0)
        socket.linger = 0
        try:
            socket.bind(address)
            # -P: the current directory must not shadow installed packages.
            module = ("-P", "-m", "branchline.engine.process")
            process = await asyncio.create_subprocess_exec(
                sys.executable, *module, address, str(os.getpid())
            )
        except BaseException:
            socket.close()
            raise
        return cls(process, socket)

    async def _handshake(self, config: EngineConfig, on_progress: OnProgress) -> None:
        self._send(Start(config))
        exited = asyncio.ensure_future(self._process.wait())
        received: asyncio.Future[bytes] | None = None
        try:
            while self._info is None:
                received = asyncio.ensure_future(self._socket.recv())
                await asyncio.wait({received, exited}, return_when=asyncio.FIRST_COMPLETED)
                # Its last words may still be on their way when the process is gone.
                await asyncio.wait({received}, timeout=LAST_WORDS_SECONDS)
                if not received.done():
                    raise EngineStartError(
                        f"the engine exited with status {exited.result()} while starting"
                    )
                self._take_startup(self._decoder.decode(received.result()), on_progress)
        finally:
            exited.cancel()
            if received is not None:
                received.cancel()
        self._receiving = asyncio.create_task(self._receive())
        self._tasks = [self._receiving, asyncio.create_task(self._watch())]

    def _take_startup(self, message: FromEngine, on_progress: OnProgress) -> None:
        if isinstance(message, StartFailed):
            raise EngineStartError(message.error)
        if isinstance(message, Starting):
            on_progress(message.progress)
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

        While too many of them wait here unread, the engine computes nothing more of the request.
        Leaving early (``aclose``, cancellation) aborts it in the engine. Raises EngineDeadError
        when the engine process is or goes away, RequestError for a request that can't be sent.
        """
        if self.dead.is_set():
            raise EngineDeadError(self.exit_reason or "the engine is gone")
        if request.request_id in self._unread:
            raise RequestError("request_id", f"{request.request_id!r} is in use")
        unread = self._unread[request.request_id] = UnreadOutputs()
        finished = False
        try:
            self._try_send(Generate(request), request.request_id)
            while not finished:
                output = await unread.get()
                if output is None:
                    raise EngineDeadError(self.exit_reason or "the engine is gone")
                finished = output.finish_reason is not None
                if unread.read(output) and not self.dead.is_set():
                    self._send(GoOn(request.request_id))
                yield output
        finally:
            del self._unread[request.request_id]
            if not finished:
                self.abort(request.request_id)

    def abort(self, request_id: str) -> None:
        """End a request with finish reason ``abort``; the engine drops it before its next step.

        Unknown ids are no error.
        """
        unread = self._unread.get(request_id)
        if unread is not None:
            unread.put(TokenOutput(request_id=request_id, token_ids=[], finish_reason="abort"))
        if not self.dead.is_set():
            self._send(Abort(request_id))

    def _send_call(self, message: ToEngine) -> None:
        if self.dead.is_set():
            raise EngineDeadError(self.exit_reason or "the engine is gone")
        self._try_send(message)

    def _try_send(self, message: ToEngine, request_id: str = "") -> None:
        """Send what holds a client's values; raises RequestError where they don't fit."""
        try:
            self._send(message, request_id)
        except (OverflowError, UnicodeError, TypeError) as error:
            raise RequestError("request", f"can't be sent to the engine: {error}") from error

    def _send(self, message: ToEngine, request_id: str = "") -> None:
        # Without a high-water mark a send on this socket is queued at once. The id goes beside
        # the message, so that one the engine can't read is refused by name.
        self._socket.send_multipart([request_id.encode(), self._encoder.encode(message)])

    async def _receive(self) -> None:
        while True:
            message = self._decoder.decode(await self._socket.recv())
            if isinstance(message, CallDone):
                self.calls.take(message)
            if isinstance(message, StepDone):
                self.stats = message.stats
                for event in message.adapter_events:
                    self.on_adapter_event(event)
                if message.blocks is not None:
                    self.on_block_changes(message.blocks)
                bound = unread_bound(len(self._unread))
                for output in message.outputs:
                    unread = self._unread.get(output.request_id)
                    if unread is not None and unread.put(output, bound):
                        self._send(Hold(output.request_id))
                # What has come while the loop was late is taken in without a pause otherwise, and
                # readers that keep up would look as if they didn't.
                await asyncio.sleep(0)

    async def _watch(self) -> None:
        """Wait for the process to end, then end every request that it held."""
        exited = asyncio.ensure_future(self._process.wait())
        await asyncio.wait({exited, self._receiving}, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            failure = None if self._receiving.cancelled() else self._receiving.exception()
            logger.error("the engine's messages can't be read", exc_info=failure)
            self._process.kill()
        await exited
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
        for unread in self._unread.values():
            unread.end()
        self.calls.end(self.exit_reason)

    async def stop(self) -> None:
        """Stop the process, by force if it does not leave in time, and close the socket."""
        self._stopping = True
        try:
            if self._process.returncode is None:
                self._send(Stop())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        finally:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._mark_dead()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._socket.close()
