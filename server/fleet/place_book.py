"""What this replica serves beside its base, kept up to date and counted in versions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ...engine.adapter_types import AdapterEvent
from ...gateway.fleet.records import AdapterPlace, AdapterPlaces
from ...lora.errors import BranchlineError
from ..errors import ApiError

READ_SECONDS = 0.5
"""How often the list is read anyway; what the engine tells is read at once."""


class PlaceBook:
    """The list as it was read last; ``version`` grows with every change."""

    def __init__(self, epoch: str, read: Callable[[], Awaitable[list[AdapterPlace]]]) -> None:
        self.current = AdapterPlaces(epoch=epoch, version=0)
        self._read = read
        self._news = asyncio.Event()

    def note(self, event: AdapterEvent) -> None:
        """An adapter came to a tier or left it."""
        self.wake()

    def wake(self) -> None:
        """Have the list read at once: something in it has changed."""
        self._news.set()

    async def refresh(self) -> None:
        """Read the list; the old one stays while there is no engine to ask."""
        with contextlib.suppress(BranchlineError, ApiError):
            places = await self._read()
            if places != self.current.places:
                epoch, version = self.current.epoch, self.current.version + 1
                self.current = AdapterPlaces(epoch=epoch, version=version, places=places)

    async def run(self) -> None:
        """Keep it up to date until cancelled."""
        while True:
            self._news.clear()
            await self.refresh()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), READ_SECONDS)
