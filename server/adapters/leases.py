"""Leases of adapter versions: what a request answers with stays until its response is over."""

from __future__ import annotations

import asyncio
from collections import Counter


class Lease:
    """One request's hold on a version; ``release`` ends it, once."""

    __slots__ = ("_digest", "_leases", "_name")

    def __init__(self, leases: AdapterLeases, digest: str | None, name: str) -> None:
        self._leases: AdapterLeases | None = leases
        self._digest = digest
        self._name = name

    def release(self) -> None:
        """Give the version back."""
        assert self._leases is not None, "a lease is released once"
        leases, self._leases = self._leases, None
        if self._digest is not None:
            leases._release(self._digest, self._name)


class AdapterLeases:
    """How many requests hold each version, and under which names. The base is not counted."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._idle: dict[str, asyncio.Event] = {}

    def take(self, digest: str | None, name: str) -> Lease:
        """Hold a version for a request that came under ``name``; None is the base."""
        if digest is not None:
            self._counts.setdefault(digest, Counter())[name] += 1
        return Lease(self, digest, name)

    def _release(self, digest: str, name: str) -> None:
        counts = self._counts[digest]
        counts[name] -= 1
        if not counts[name]:
            del counts[name]
        if not counts:
            del self._counts[digest]
            if (idle := self._idle.pop(digest, None)) is not None:
                idle.set()

    def count(self, digest: str) -> int:
        """Requests that hold the version."""
        return self._counts[digest].total() if digest in self._counts else 0

    def names_of(self, digest: str) -> list[str]:
        """Names under which requests hold the version."""
        return list(self._counts.get(digest, ()))

    async def wait_idle(self, digest: str) -> None:
        """Return once nobody holds the version."""
        while digest in self._counts:
            await self._idle.setdefault(digest, asyncio.Event()).wait()
