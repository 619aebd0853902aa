"""Counts the requests inside, and closes to new ones when the server is to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import unavailable


class Gate:
    """Open until ``close``; ``empty`` is set whenever no request is inside."""

    def __init__(self) -> None:
        self.closed = False
        self.empty = asyncio.Event()
        self.empty.set()
        self._num_inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside for one request; raises ApiError 503 once the gate is closed."""
        if self.closed:
            raise unavailable("The server is shutting down and takes no new requests.", "draining")
        self._num_inside += 1
        self.empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self.empty.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self.closed = True
