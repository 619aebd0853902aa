"""Keeps one engine behind the server: notices its death, and restarts it when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from ..engine.cache_types import CacheReport, PinReport, PrefixTarget
from ..engine.errors import EngineDeadError, EngineStartError
from ..engine.types import EngineInfo, EngineStats, GenerationRequest, TokenOutput

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 300.0


class Engine(Protocol):
    """One engine's life, as ``EngineClient`` offers it."""

    stats: EngineStats
    dead: asyncio.Event
    exit_reason: str | None

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself when it came up."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        """The request's outputs; leaving early aborts it."""

    async def report_cache(self, max_prefixes: int) -> CacheReport:
        """The prefix cache as it stands."""

    async def reset_cache(self) -> int:
        """Forget every cached prefix."""

    async def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Keep a cached prefix on the device."""

    async def remove_pin(self, pin_id: str) -> bool:
        """End a pin; whether there was one."""

    async def stop(self) -> None:
        """Stop the engine."""


class EngineSupervisor:
    """The engine of the moment. ``failed`` is set once there will be no other."""

    def __init__(
        self,
        engine: Engine,
        start: Callable[[], Awaitable[Engine]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.info = engine.info
        self.failed = asyncio.Event()
        self._start = start
        self._clock = clock
        self._restarts: list[float] = []
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether there is an engine to send requests to."""
        return not self.engine.dead.is_set()

    @property
    def stats(self) -> EngineStats:
        """The engine's latest snapshot."""
        return self.engine.stats

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        """Hand a request to the engine of the moment; raises EngineDeadError without one."""
        return self._living().generate(request)

    async def report_cache(self, max_prefixes: int) -> CacheReport:
        """The prefix cache as it stands; like all calls here, what ``EngineClient`` makes of it."""
        return await self._living().report_cache(max_prefixes)

    async def reset_cache(self) -> int:
        """Forget every cached prefix; the number of blocks forgotten."""
        return await self._living().reset_cache()

    async def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Keep a cached prefix on the device; raises RequestError for one that can't be."""
        return await self._living().pin_prefix(target, ttl_seconds)

    async def remove_pin(self, pin_id: str) -> bool:
        """End a pin; whether there was one. Pins don't outlive their engine."""
        return await self._living().remove_pin(pin_id)

    def _living(self) -> Engine:
        """The engine of the moment; raises EngineDeadError without one."""
        if self.alive:
            return self.engine
        reason = self.engine.exit_reason or "the engine is gone"
        raise EngineDeadError(reason if self.failed.is_set() else f"{reason}; restarting")

    async def watch(self) -> None:
        """Run until cancelled, or until the engine is gone for good."""
        while True:
            await self.engine.dead.wait()
            if self._stopping:
                return
            logger.error("engine: %s", self.engine.exit_reason)
            if not await self._restart():
                self.failed.set()
                return

    async def _restart(self) -> bool:
        now = self._clock()
        self._restarts = [t for t in self._restarts if now - t < RESTART_WINDOW_SECONDS]
        if self._start is None:
            return False
        if len(self._restarts) >= MAX_RESTARTS:
            logger.error("the engine died %d times in a row, giving up", MAX_RESTARTS + 1)
            return False
        self._restarts.append(now)
        with contextlib.suppress(Exception):  # it is dead; this only tidies up
            await self.engine.stop()
        try:
            self.engine = await self._start()
        except EngineStartError as error:
            logger.error("the engine did not come back: %s", error)
            return False
        logger.info("the engine is back")
        return True

    async def stop(self) -> None:
        """Stop the engine; requests it still holds end with EngineDeadError."""
        self._stopping = True
        await self.engine.stop()
