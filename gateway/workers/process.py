"""One worker: a gateway of its own on a port that it shares. Its parent starts this module."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial

from ..announce import configure_logging, say
from ..fleet.process import ListenError, loop_factory
from ..serve import EXIT_FAILED, Seat, serve
from ..start_error import StartError
from .channel import FAILED, READY, STOP, Order, receive_order
from .port import bind_shared
from .siblings import Siblings

_STDIN = 0


def main() -> int:
    """Be a worker until told to stop; returns the exit status."""
    channel = socket.socket(fileno=_STDIN)
    try:
        order = receive_order(channel)
    except (EOFError, OSError):
        return EXIT_FAILED
    configure_logging(order.config.log_level, f"gateway worker {order.number}")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(order, channel))
    except (StartError, ListenError) as error:
        _tell(channel, FAILED + " ".join(str(error).split()))
    return EXIT_FAILED


async def _serve(order: Order, channel: socket.socket) -> int:
    config, number = order.config, order.number
    stop = _stop_event(order, channel)
    with bind_shared(config.host, config.port) as listener:
        seat = Seat(
            listener=listener,
            stop=stop,
            tell_ready=lambda: _tell(channel, READY),
            say=lambda text: say(f"worker {number}: {text}"),
            siblings=Siblings(order.directory, number, config.workers),
        )
        return await serve(config, seat)


def _stop_event(order: Order, channel: socket.socket) -> asyncio.Event:
    """Set by the parent's word or SIGTERM, any number of times: only the parent counts signals.

    Who stops a service often signals all of its processes; what is SIGINT to the parent alone
    goes to the whole group of a terminal.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_stop = partial(loop.call_soon_threadsafe, stop.set)
    threading.Thread(target=_listen, args=(channel, order, on_stop), daemon=True).start()
    return stop


def _listen(channel: socket.socket, order: Order, on_stop: Callable[[], object]) -> None:
    """Hear the parent, and end at once when it is gone, also where the loop hangs.

    The port has to be free for who comes next.
    """
    with contextlib.suppress(OSError):
        while channel.recv(1) == STOP:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                on_stop()
    shutil.rmtree(order.directory, ignore_errors=True)
    os._exit(EXIT_FAILED)


def _tell(channel: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):
        channel.sendall(f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
