"""The engine process: ``python -m branchline.engine.process ADDRESS PARENT_PID``."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time

import msgspec
import zmq

from ..lora.errors import BranchlineError
from .adapter_answers import answer_adapter_call, ended_calls, news_of
from .errors import RequestError
from .key_news import KeyNews
from .loop import EngineLoop
from .messages import (
    Abort,
    AdapterCall,
    CacheCall,
    CallDone,
    FromEngine,
    Generate,
    GoOn,
    Hold,
    PinPrefix,
    RemovePin,
    ReportCache,
    ResetCache,
    Start,
    Started,
    StartFailed,
    Starting,
    StepDone,
    Stop,
    ToEngine,
)
from .types import TokenOutput

IDLE_POLL_MS = 1000
STALLED_POLL_MS = 2
CHECK_SECONDS = 60.0
"""Between two checks of an idle engine: one of a large prefix cache takes a tenth of a second."""


class EngineServer:
    """Feeds one EngineLoop from one socket until told to stop or the parent is gone."""

    def __init__(self, socket: zmq.Socket[bytes], parent: int) -> None:
        self._socket = socket
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._parent = parent
        self._num_steps_checked = 0
        self._next_check = 0.0
        self._stopping = False
        self._rejected: list[TokenOutput] = []
        self._block_news = KeyNews()

    def run(self) -> int:
        """Start up, serve, and return the exit status."""
        while not self._socket.poll(IDLE_POLL_MS):
            if self._orphaned:
                return 1
        _, payload = self._socket.recv_multipart()
        message = self._decoder.decode(payload)
        assert isinstance(message, Start), "the first message is Start"
        loop = self._start(message)
        if loop is None:
            return 1
        if message.config.tell_blocks:
            loop.subscribe(self._block_news.note)
        _settle_garbage()
        self._send(Started(loop.info, loop.stats()))
        while not self._stopping and not self._orphaned:
            self._turn(loop)
        loop.adapters.close()
        return 0

    @property
    def _orphaned(self) -> bool:
        """Whether the server that started this process is gone."""
        return os.getppid() != self._parent

    def _start(self, message: Start) -> EngineLoop | None:
        from .build import build_engine

        try:
            return build_engine(message.config, lambda news: self._send(Starting(news)))
        except (BranchlineError, ValueError, OSError) as error:
            self._send(StartFailed(str(error)))
        except Exception as error:
            logging.exception("the engine could not start")
            self._send(StartFailed(f"{type(error).__name__}: {error}".splitlines()[0]))
        return None

    def _turn(self, loop: EngineLoop) -> None:
        """Take in what has arrived, then do one step."""
        num_steps = loop.num_steps
        outputs = loop.step() if loop.has_work else []
        stepped = loop.num_steps > num_steps
        self._tell(loop, [*self._rejected, *outputs], stepped)
        self._rejected = []
        if loop.has_work:
            self._receive(loop, 0 if stepped or loop.is_running else STALLED_POLL_MS)
            return
        is_busy = loop.tend()
        self._tell(loop, [], False)
        received = self._receive(loop, STALLED_POLL_MS if is_busy else IDLE_POLL_MS)
        if not (is_busy or received) and loop.num_steps > self._num_steps_checked:
            self._check(loop)

    def _tell(self, loop: EngineLoop, outputs: list[TokenOutput], stepped: bool) -> None:
        """Send what has come of a turn, then the answers to calls that it has ended.

        In this order, so that who hears that something is done finds the counts to match.
        """
        events, ended = news_of(loop.adapters), ended_calls(loop.adapters)
        blocks = self._block_news.take()
        if stepped or outputs or events or ended or blocks is not None:
            self._send(StepDone(outputs, loop.stats(), events, blocks))
        for done in ended:
            self._send(done)

    def _check(self, loop: EngineLoop) -> None:
        if time.monotonic() >= self._next_check:
            loop.check()
            self._num_steps_checked = loop.num_steps
            self._next_check = time.monotonic() + CHECK_SECONDS

    def _receive(self, loop: EngineLoop, timeout_ms: int) -> bool:
        """Take in all that has arrived; False if nothing did."""
        received = False
        while not self._stopping and self._socket.poll(0 if received else timeout_ms):
            received = True
            request_id, payload = self._socket.recv_multipart()
            try:
                self._take(loop, self._decoder.decode(payload))
            except (RequestError, msgspec.MsgspecError) as error:
                self._refuse(request_id.decode(errors="replace"), str(error))
        return received

    def _take(self, loop: EngineLoop, message: ToEngine) -> None:
        if isinstance(message, Generate):
            self._rejected += loop.add(message.request)
        elif isinstance(message, Abort):
            loop.abort(message.request_id)
            self._tell_of_rest(loop)
        elif isinstance(message, Hold):
            loop.hold(message.request_id)
            self._tell_of_rest(loop)
        elif isinstance(message, GoOn):
            loop.go_on(message.request_id)
        elif isinstance(message, Stop):
            self._stopping = True
        elif isinstance(message, CacheCall):
            self._send(_answer(loop, message))
            self._send(StepDone([], loop.stats()))
        elif isinstance(message, AdapterCall):
            done = answer_adapter_call(loop, message)
            if done is not None:
                self._send(StepDone([], loop.stats(), news_of(loop.adapters)))
                self._send(done)

    def _tell_of_rest(self, loop: EngineLoop) -> None:
        """Send the counts where no step will, since there is nothing to compute any more."""
        if not loop.has_work:
            self._send(StepDone([], loop.stats()))

    def _refuse(self, request_id: str, error: str) -> None:
        self._rejected.append(
            TokenOutput(
                request_id=request_id,
                token_ids=[],
                finish_reason="error",
                error=error,
                error_kind="refused",
            )
        )

    def _send(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))


def _settle_garbage() -> None:
    """Leave what is there for good out of collections, and make full ones rare.

    The prefix cache and waiting prompts are many objects and no cycles: a full collection would
    take a tenth of a second in the midst of a step.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)


def _answer(loop: EngineLoop, message: CacheCall) -> CallDone:
    """Do what an admin asks for, between two steps."""
    try:
        match message:
            case ReportCache():
                report = loop.report_cache(message.max_prefixes)
                return CallDone(message.call_id, report=report)
            case ResetCache():
                return CallDone(message.call_id, count=loop.reset_cache())
            case PinPrefix():
                pin = loop.pin_prefix(message.target, message.ttl_seconds)
                return CallDone(message.call_id, pin=pin)
            case RemovePin():
                return CallDone(message.call_id, count=int(loop.pins.remove(message.pin_id)))
    except RequestError as error:
        return CallDone(message.call_id, error_field=error.field, error=error.message)


def main(address: str, parent: int) -> int:
    """Serve the engine at ``address`` for process ``parent``; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s engine: %(message)s", stream=sys.stderr)
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 1000
        socket.connect(address)
        return EngineServer(socket, parent).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
