"""Keeps one engine behind the server: notices its death, and restarts it when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from ..engine.adapter_types import AdapterEvent, AdapterReport, FreedAdapter, PinTier
from ..engine.cache_types import BlockChanges, CacheReport, PinReport, PrefixTarget
from ..engine.errors import EngineDeadError, EngineError
from ..engine.types import EngineInfo, EngineStats, GenerationRequest, TokenOutput

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 300.0


class Calls(Protocol):
    """What an engine can be asked, as ``EngineCalls`` offers it."""

    async def report_cache(self, max_prefixes: int) -> CacheReport:
        """The prefix cache as it stands."""

    async def reset_cache(self) -> int:
        """Forget every cached prefix."""

    async def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Keep a cached prefix on the device."""

    async def remove_pin(self, pin_id: str) -> bool:
        """End a pin; whether there was one."""

    async def add_adapter(self, digest: str, path: str) -> AdapterReport:
        """Make a version known."""

    async def remove_adapter(self, digest: str) -> FreedAdapter:
        """Forget a version."""

    async def load_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Bring a version to a tier."""

    async def evict_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Take a version off a tier."""

    async def pin_adapter(self, digest: str, tier: PinTier | None) -> AdapterReport:
        """Keep a version in a tier."""

    async def report_adapters(self, digests: list[str] | None = None) -> list[AdapterReport]:
        """How these versions stand."""


class Engine(Protocol):
    """One engine's life, as ``EngineClient`` offers it."""

    stats: EngineStats
    dead: asyncio.Event
    exit_reason: str | None
    on_adapter_event: Callable[[AdapterEvent], None]
    on_block_changes: Callable[[BlockChanges], None]

    @property
    def calls(self) -> Calls:
        """What it can be asked."""

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself when it came up."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        """The request's outputs; leaving early aborts it."""

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
        self._on_start: Callable[[Engine], Awaitable[None]] | None = None
        self._listeners: list[Callable[[AdapterEvent], None]] = []
        self._block_listeners: list[Callable[[BlockChanges], None]] = []
        self._listen(engine)

    def on_start(self, callback: Callable[[Engine], Awaitable[None]]) -> None:
        """Have ``callback`` awaited with a restarted engine, before that gets any request."""
        self._on_start = callback

    def subscribe_adapters(self, listener: Callable[[AdapterEvent], None]) -> None:
        """Have ``listener`` told of every adapter that comes to a tier or leaves it."""
        self._listeners.append(listener)

    def subscribe_blocks(self, listener: Callable[[BlockChanges], None]) -> None:
        """Have ``listener`` told which blocks are cached, where ``tell_blocks`` is set."""
        self._block_listeners.append(listener)

    def _listen(self, engine: Engine) -> None:
        engine.on_adapter_event = self._tell
        engine.on_block_changes = self._tell_blocks

    def _tell_blocks(self, changes: BlockChanges) -> None:
        for listener in self._block_listeners:
            listener(changes)

    def _tell(self, event: AdapterEvent) -> None:
        for listener in self._listeners:
            listener(event)

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

    @property
    def calls(self) -> Calls:
        """What the engine of the moment can be asked; raises EngineDeadError without one."""
        return self._living().calls

    async def report_cache(self, max_prefixes: int) -> CacheReport:
        """The prefix cache as it stands; like all calls here, see ``EngineCalls``."""
        return await self.calls.report_cache(max_prefixes)

    async def reset_cache(self) -> int:
        """Forget every cached prefix; the number of blocks forgotten."""
        return await self.calls.reset_cache()

    async def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Keep a cached prefix on the device; raises RequestError for one that can't be."""
        return await self.calls.pin_prefix(target, ttl_seconds)

    async def remove_pin(self, pin_id: str) -> bool:
        """End a pin; whether there was one. Pins don't outlive their engine."""
        return await self.calls.remove_pin(pin_id)

    async def add_adapter(self, digest: str, path: str) -> AdapterReport:
        """Make an adapter version known by its formatted file."""
        return await self.calls.add_adapter(digest, path)

    async def remove_adapter(self, digest: str) -> FreedAdapter:
        """Forget a version; answers when its last request has ended and its memory is free."""
        return await self.calls.remove_adapter(digest)

    async def load_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Bring a version to a tier; answers when it is there."""
        return await self.calls.load_adapter(digest, tier)

    async def evict_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Take a version that nobody uses off a tier."""
        return await self.calls.evict_adapter(digest, tier)

    async def pin_adapter(self, digest: str, tier: PinTier | None) -> AdapterReport:
        """Keep a version in a tier; answers when it is there. None ends that."""
        return await self.calls.pin_adapter(digest, tier)

    async def report_adapters(self, digests: list[str] | None = None) -> list[AdapterReport]:
        """How these versions stand, as far as they are known; None: all, oldest first."""
        return await self.calls.report_adapters(digests)

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
            self._tell_blocks(BlockChanges(cleared=True))
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
            engine = await self._start()
            self._listen(engine)
            if self._on_start is not None:
                await self._on_start(engine)
        except EngineError as error:
            logger.error("the engine did not come back: %s", error)
            return False
        self.engine = engine
        logger.info("the engine is back")
        return True

    async def stop(self) -> None:
        """Stop the engine; requests it still holds end with EngineDeadError."""
        self._stopping = True
        await self.engine.stop()
