"""Calls to the engine that have one answer each: about its prefix cache and its adapters."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from .adapter_calls import LOAD_SECONDS
from .adapter_types import AdapterReport, FreedAdapter, PinTier
from .cache_types import CacheReport, PinReport, PrefixTarget
from .errors import EngineDeadError, RequestError
from .messages import (
    AddAdapter,
    CallDone,
    EvictAdapter,
    LoadAdapter,
    PinAdapter,
    PinPrefix,
    RemoveAdapter,
    RemovePin,
    ReportAdapters,
    ReportCache,
    ResetCache,
    ToEngine,
)

CALL_SECONDS = 30.0
"""A call is answered between two steps; a step of a long prompt on a CPU can take seconds."""


class EngineCalls:
    """Sends calls through ``send`` and waits for their answers.

    All of them raise EngineDeadError when the engine is or goes away, TimeoutError when it gives
    no answer, and RequestError for what it refuses.
    """

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        self._send = send
        self._waiting: dict[str, asyncio.Future[CallDone]] = {}

    async def report_cache(self, max_prefixes: int) -> CacheReport:
        """The prefix cache as it stands, with the ``max_prefixes`` biggest prefixes."""
        done = await self._call(lambda call_id: ReportCache(call_id, max_prefixes))
        assert done.report is not None
        return done.report

    async def reset_cache(self) -> int:
        """Forget every cached prefix; the number of blocks forgotten."""
        return (await self._call(ResetCache)).count

    async def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Keep a cached prefix on the device; raises RequestError for one that can't be."""
        done = await self._call(lambda call_id: PinPrefix(call_id, target, ttl_seconds))
        assert done.pin is not None
        return done.pin

    async def remove_pin(self, pin_id: str) -> bool:
        """End a pin; whether there was one."""
        return (await self._call(lambda call_id: RemovePin(call_id, pin_id))).count > 0

    async def add_adapter(self, digest: str, path: str) -> AdapterReport:
        """Make a version known by its formatted file; one that is known stays as it is."""
        return await self._one(lambda call_id: AddAdapter(call_id, digest, path))

    async def remove_adapter(self, digest: str) -> FreedAdapter:
        """Forget a version; answers when its last request has ended and its memory is free."""
        done = await self._call(lambda call_id: RemoveAdapter(call_id, digest), None)
        assert done.freed is not None
        return done.freed

    async def load_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Bring a version to a tier; answers when it is there."""
        return await self._one(lambda call_id: LoadAdapter(call_id, digest, tier), LOAD_SECONDS)

    async def evict_adapter(self, digest: str, tier: PinTier) -> AdapterReport:
        """Take a version that nobody uses off the device, or out of host memory too."""
        return await self._one(lambda call_id: EvictAdapter(call_id, digest, tier))

    async def pin_adapter(self, digest: str, tier: PinTier | None) -> AdapterReport:
        """Keep a version in a tier; answers when it is there. None ends that."""
        return await self._one(lambda call_id: PinAdapter(call_id, digest, tier), LOAD_SECONDS)

    async def report_adapters(self, digests: list[str] | None = None) -> list[AdapterReport]:
        """How these versions stand, as far as they are known; None: all, oldest first."""
        return (await self._call(lambda call_id: ReportAdapters(call_id, digests))).adapters

    async def _one(
        self, message: Callable[[str], ToEngine], extra_seconds: float = 0.0
    ) -> AdapterReport:
        [report] = (await self._call(message, extra_seconds)).adapters
        return report

    async def _call(
        self, message: Callable[[str], ToEngine], extra_seconds: float | None = 0.0
    ) -> CallDone:
        """The answer, waited for ``CALL_SECONDS`` and ``extra_seconds``; None: for ever."""
        seconds = None if extra_seconds is None else CALL_SECONDS + extra_seconds
        call_id = uuid.uuid4().hex
        answered: asyncio.Future[CallDone] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = answered
        try:
            self._send(message(call_id))
            async with asyncio.timeout(seconds):
                done = await answered
        finally:
            del self._waiting[call_id]
        if done.error is not None:
            raise RequestError(done.error_field or "request", done.error)
        return done

    def take(self, done: CallDone) -> None:
        """Hand an answer to its caller, who may have gone."""
        answered = self._waiting.get(done.call_id)
        if answered is not None and not answered.done():
            answered.set_result(done)

    def end(self, reason: str) -> None:
        """Tell all callers that the engine is gone."""
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(EngineDeadError(reason))
