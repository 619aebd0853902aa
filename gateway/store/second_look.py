"""One more look at Redis before a name is called unknown: it may be younger than the last poll."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from .documents import StoreDown
from .store import Store

LEAST_SECONDS = 0.1
"""Between the beginnings of two looks, however many ask."""
MAX_WAIT_SECONDS = 0.3

logger = logging.getLogger(__name__)


class SecondLook:
    """Looks that are shared by all who wait: a burst of unknown names costs ten reads a second."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._begun_at = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def look(self) -> bool:
        """Wait for a look that begins after this call; False where it is not to be had.

        That is at once while Redis is away and where there is none, and after MAX_WAIT_SECONDS.
        """
        if not (self._store.is_shared and self._store.is_up):
            return False
        if self._next is None:
            self._next = asyncio.create_task(self._look(self._running))
        looking = self._next
        await asyncio.wait({looking}, timeout=MAX_WAIT_SECONDS)
        return looking.done()

    async def _look(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        await asyncio.sleep(self._begun_at + LEAST_SECONDS - self._clock())
        self._running, self._next = self._next, None  # who comes from now on needs a later one
        self._begun_at = self._clock()
        try:
            await self._store.refresh()
        except StoreDown:
            pass  # the link tells of it
        except Exception:
            logger.exception("the store can't be looked at")
