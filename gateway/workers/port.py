"""One port for several processes: the kernel deals connections to all that listen on it."""

from __future__ import annotations

import socket

from ..fleet.process import ListenError, bind


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for ``bind_shared`` and never listens; raises ListenError.

    SO_REUSEPORT would also share the port with a stranger of the same user, so it is bound without
    first. Without SO_REUSEADDR this socket refuses the same to who comes later; it is left out only
    while connections of an earlier gateway linger on the port.
    """
    if port:
        bind(host, port).close()
    try:
        return _bind_shared(host, port, reuse_address=False)
    except ListenError:
        return _bind_shared(host, port, reuse_address=True)


def bind_shared(host: str, port: int) -> socket.socket:
    """A bound socket of the reserved port that does not listen yet; raises ListenError."""
    return _bind_shared(host, port, reuse_address=True)


def _bind_shared(host: str, port: int, *, reuse_address: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ListenError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    return listener
