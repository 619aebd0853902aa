"""What every serving process needs: its socket, its loop, and how it hears that it has to end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ListenError(Exception):
    """The address can't be listened on; says why in one line."""


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; a second signal ends the process where it stands.

    Not by KeyboardInterrupt, which asyncio turns into the cancellation of all tasks, those
    too that the way out waits for.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def bind(
    host: str, port: int, *, shares_port: bool = False, reuses_address: bool = True
) -> socket.socket:
    """A bound socket that does not listen yet: connections are refused; raises ListenError.

    ``shares_port`` is SO_REUSEPORT, ``reuses_address`` SO_REUSEADDR.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuses_address))
    if shares_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ListenError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is made for this platform."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
