"""Counts the requests inside, bounds them, and closes to new ones when the gateway is to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import GatewayError

_LATER = {"retry-after": "1"}


class Gate:
    """Open until ``close``; ``empty`` is set whenever no request is inside."""

    def __init__(self, max_inside: int) -> None:
        self.is_closed = False
        self.empty = asyncio.Event()
        self.empty.set()
        self.num_inside = 0
        self._max_inside = max_inside

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside for one request; raises GatewayError 503 when closed or full."""
        if self.is_closed:
            message = "The gateway is shutting down and takes no new requests."
            raise GatewayError(503, message, code="draining", headers=_LATER)
        if self.num_inside >= self._max_inside:
            message = f"The gateway has {self._max_inside} requests, the most it takes."
            raise GatewayError(503, message, code="too_many_requests_here", headers=_LATER)
        self.num_inside += 1
        self.empty.clear()
        try:
            yield
        finally:
            self.num_inside -= 1
            if not self.num_inside:
                self.empty.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self.is_closed = True
