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
        return bind(host, port, shares_port=True, reuses_address=False)
    except ListenError:
        return bind_shared(host, port)


def bind_shared(host: str, port: int) -> socket.socket:
    """A bound socket of the reserved port that does not listen yet; raises ListenError."""
    return bind(host, port, shares_port=True)
