"""The engine process: ``python -m branchline.engine.process ADDRESS``."""

from __future__ import annotations

import logging
import os
import signal
import sys

import msgspec
import zmq

from ..lora.errors import BranchlineError
from .errors import RequestError
from .loop import EngineLoop
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
from .types import TokenOutput

IDLE_POLL_MS = 1000
STALLED_POLL_MS = 2


class EngineServer:
    """Feeds one EngineLoop from one socket until told to stop or the parent is gone."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._parent = os.getppid()
        self._stopping = False
        self._rejected: list[TokenOutput] = []

    def run(self) -> int:
        """Start up, serve, and return the exit status."""
        message = self._decoder.decode(self._socket.recv())
        assert isinstance(message, Start), "the first message is Start"
        loop = self._start(message)
        if loop is None:
            return 1
        self._send(Started(loop.info, loop.stats()))
        while not self._stopping and os.getppid() == self._parent:
            self._turn(loop)
        return 0

    def _start(self, message: Start) -> EngineLoop | None:
        from .build import build_engine

        try:
            return build_engine(message.config, lambda text: self._send(Progress(text)))
        except (BranchlineError, ValueError, OSError) as error:
            self._send(StartFailed(str(error)))
        except (MemoryError, RuntimeError) as error:
            logging.exception("the engine could not start")
            self._send(StartFailed(f"{type(error).__name__}: {error}".splitlines()[0]))
        return None

    def _turn(self, loop: EngineLoop) -> None:
        """Take in what has arrived, then do one step."""
        num_steps = loop.num_steps
        outputs = loop.step() if loop.has_work else []
        stepped = loop.num_steps > num_steps
        if stepped or self._rejected:
            self._send(StepDone([*self._rejected, *outputs], loop.stats()))
            self._rejected = []
        if not loop.has_work:
            loop.check()
            self._receive(loop, IDLE_POLL_MS)
        else:
            self._receive(loop, 0 if stepped else STALLED_POLL_MS)

    def _receive(self, loop: EngineLoop, timeout_ms: int) -> None:
        aborted = False
        while not self._stopping and self._socket.poll(timeout_ms):
            timeout_ms = 0
            message = self._decoder.decode(self._socket.recv())
            if isinstance(message, Generate):
                self._add(loop, message)
            elif isinstance(message, Abort):
                loop.abort(message.request_id)
                aborted = True
            elif isinstance(message, Stop):
                self._stopping = True
        if aborted and not loop.has_work:
            self._send(StepDone([], loop.stats()))

    def _add(self, loop: EngineLoop, message: Generate) -> None:
        try:
            loop.add(message.request)
        except RequestError as error:
            self._rejected.append(
                TokenOutput(
                    request_id=message.request.request_id,
                    token_ids=[],
                    finish_reason="error",
                    error=str(error),
                )
            )

    def _send(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))


def main(address: str) -> int:
    """Serve the engine at ``address``; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s engine: %(message)s", stream=sys.stderr)
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 1000
        socket.connect(address)
        return EngineServer(socket).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
