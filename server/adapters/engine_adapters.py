"""Adapter versions in the engine of the moment: added, pinned, removed, one step at a time each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from ...engine.adapter_types import AdapterReport, FreedAdapter, PinTier
from ...engine.errors import EngineDeadError, EngineError, RequestError
from ..supervisor import Calls
from .turns import Turns

logger = logging.getLogger(__name__)

MAX_PARALLEL_CALLS = 32


class EngineAdapters:
    """Which versions the engine has. Calls that change one of them wait for each other.

    While a dead engine is being restarted, what it had still counts: ``add_all`` gives it to the
    next one.
    """

    def __init__(self, engine: Calls, path_of: Callable[[str], Path]) -> None:
        self._engine = engine
        self._path_of = path_of
        self._held: set[str] = set()
        self._doubtful: set[str] = set()  # it has not answered whether it has them
        self._pins: dict[str, PinTier] = {}
        self._turns = Turns()

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def turn(self, digest: str) -> AbstractAsyncContextManager[None]:
        """Have a version to oneself: ``add`` and ``pin`` of it wait meanwhile."""
        return self._turns.of(digest)

    async def add(self, digest: str) -> None:
        """Give a version to the engine, unless it has it."""
        async with self.turn(digest):
            if digest in self._held:
                return
            self._doubtful.add(digest)
            try:
                await self._engine.add_adapter(digest, str(self._path_of(digest)))
            except EngineError:  # it has answered that it has not
                self._doubtful.discard(digest)
                raise
            self._doubtful.discard(digest)
            self._held.add(digest)

    async def remove_now(self, digest: str) -> FreedAdapter | None:
        """Take a version from the engine, within its ``turn``; None if the engine had none.

        Waits as long as the engine's own requests hold it.
        """
        if digest not in self._held and digest not in self._doubtful:
            return None
        freed: FreedAdapter | None = None
        # Whoever asks for it meanwhile must not take it for one that stays.
        self._held.discard(digest)
        self._doubtful.add(digest)
        try:
            freed = await self._engine.remove_adapter(digest)
        except EngineError as error:  # dead, or it does not know the version
            logger.info("adapter %s went with the engine: %s", digest[:12], error)
        self._doubtful.discard(digest)
        self._pins.pop(digest, None)
        return freed

    async def pin(self, digest: str, tier: PinTier | None) -> None:
        """Pin a version or end its pin; raises RequestError where it can't be.

        One that the engine does not have is left alone, and nobody waits for one that leaves it.
        """
        if self._is_pinned_so(digest, tier):
            return
        async with self.turn(digest):
            if self._is_pinned_so(digest, tier):
                return
            try:
                await self._engine.pin_adapter(digest, tier)
            except (RequestError, TimeoutError):
                # It has noted the pin, and may yet find the room.
                with contextlib.suppress(EngineError, TimeoutError):
                    await self._engine.pin_adapter(digest, self._pins.get(digest))
                raise
            if tier is None:
                del self._pins[digest]
            else:
                self._pins[digest] = tier

    def _is_pinned_so(self, digest: str, tier: PinTier | None) -> bool:
        return digest not in self._held or self._pins.get(digest) == tier

    async def load(self, digest: str, tier: PinTier) -> None:
        """Bring a version to a tier; raises RequestError where it can't be."""
        await self._engine.load_adapter(digest, tier)

    async def evict(self, digest: str, tier: PinTier) -> None:
        """Take a version off a tier; raises RequestError where it can't be."""
        await self._engine.evict_adapter(digest, tier)

    async def reports(self, digests: list[str] | None = None) -> dict[str, AdapterReport]:
        """What the engine says of all its versions or of some; nothing while it is down."""
        try:
            reports = await self._engine.report_adapters(digests)
            return {report.digest: report for report in reports}
        except EngineDeadError:
            return {}

    async def add_all(self, digests: Iterable[str], engine: Calls) -> dict[str, str]:
        """Give versions, and the pins there were, to a new engine; what failed, and why."""
        self._held.clear()
        self._doubtful.clear()
        pins, self._pins = self._pins, {}
        room = asyncio.Semaphore(MAX_PARALLEL_CALLS)
        failures: dict[str, str] = {}

        async def add(digest: str) -> None:
            async with room:
                try:
                    await engine.add_adapter(digest, str(self._path_of(digest)))
                    self._held.add(digest)
                    if digest in pins:
                        await engine.pin_adapter(digest, pins[digest])
                        self._pins[digest] = pins[digest]
                except (RequestError, TimeoutError) as error:
                    failures[digest] = str(error) or "the engine has not answered in time"

        await asyncio.gather(*map(add, dict.fromkeys(digests)))
        return failures
