"""What a worker and its parent say to each other over the socket that is the worker's stdin.

```
parent -> worker   its order, once; then STOP: let streams end and leave
worker -> parent   READY, or FAILED and why, a line
either             the end: the other one is gone
```
"""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from ..config import GatewayConfig

STOP = b"s"
READY = "ready"
FAILED = "failed "

_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker is: its number, from 0, its own config, and where the workers' sockets are."""

    number: int
    config: GatewayConfig
    directory: Path


def order_frame(order: Order) -> bytes:
    """An order as bytes. It holds secrets, so it goes neither by command line nor environment."""
    body = pickle.dumps(order)
    return _LENGTH.pack(len(body)) + body


def receive_order(channel: socket.socket) -> Order:
    """Wait for it; raises EOFError when the parent is gone."""
    (length,) = _LENGTH.unpack(_receive(channel, _LENGTH.size))
    order = pickle.loads(_receive(channel, length))
    assert isinstance(order, Order), "the parent's first message"
    return order


def _receive(channel: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = channel.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data
