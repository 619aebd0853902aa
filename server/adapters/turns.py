"""Locks by key, of which only those in use exist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Who holds a key has it to oneself; others wait in the order they came."""

    def __init__(self) -> None:
        self._locks: dict[str, _Counted] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Hold ``key``."""
        counted = self._locks.setdefault(key, _Counted())
        counted.num_users += 1
        try:
            async with counted.lock:
                yield
        finally:
            counted.num_users -= 1
            if not counted.num_users:
                del self._locks[key]


class _Counted:
    """A lock, and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num_users = 0
