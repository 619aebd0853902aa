"""Brings what a gateway has counted to Redis, in the background."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

from ..fleet.connection import Client, RedisLink
from ..fleet.redis_names import RedisNames
from ..fleet.script import Script
from .ledger import Ledger, Page
from .windows import DAY

MAX_LABELS_A_CALL = 200

_MERGE = Script(resources.files(__package__).joinpath("usage.lua").read_text())


class UsageTeller:
    """Brings a ledger's pages to Redis; ``told_until`` is when it last had all of them."""

    def __init__(self, link: RedisLink, names: RedisNames, ledger: Ledger, gateway_id: str) -> None:
        self._link = link
        self._names = names
        self._ledger = ledger
        self._gateway_id = gateway_id
        self._generation = ""

    async def tell(self, now: float, on_loss: Callable[[], None]) -> None:
        """What changed since, or everything to a Redis that has lost it; raises RedisDown.

        ``on_loss`` is called at once where it has: to tell everything may take a minute.
        """
        generation = await self._link.run(self._find_generation)
        if generation != self._generation:
            on_loss()
            await self._tell_pages(await asyncio.to_thread(lambda: [*self._ledger.saved_pages()]))
            await self._tell_pages(self._ledger.own_pages())
            self._generation = generation
        pages = self._ledger.take_untold()
        try:
            while pages:
                await self._tell_page(pages[-1])
                pages.pop()
        finally:
            for page in pages:
                self._ledger.put_back(page)
        await self._link.run(lambda client: self._mark(client, now))

    async def leave(self) -> None:
        """Say that nothing more comes, after the last ``tell``; raises RedisDown."""
        key = told_key(self._names)
        await self._link.run(lambda client: command(client, "HDEL", key, self._gateway_id))

    async def _tell_pages(self, pages: Iterable[Page]) -> None:
        for page in pages:
            await self._tell_page(page)

    async def _tell_page(self, page: Page) -> None:
        key = usage_key(self._names, page.tenant, page.day)
        labels = list(page.totals)
        for first in range(0, len(labels), MAX_LABELS_A_CALL):
            await self._merge(key, page, labels[first : first + MAX_LABELS_A_CALL])
        words = ("ZADD", tenants_key(self._names), "GT", page.day, page.tenant)
        await self._link.run(lambda client: command(client, *words))

    async def _merge(self, key: str, page: Page, labels: list[str]) -> None:
        args: list[str | int] = [self._ledger.keep_days * DAY]
        for label in labels:
            args += [f"{page.writer}:{label}", " ".join(map(str, page.totals[label]))]
        await self._link.run(lambda client: _MERGE.run(client, [key], args))

    async def _mark(self, client: Client, now: float) -> None:
        oldest = int(now) // DAY - self._ledger.keep_days
        await command(client, "ZREMRANGEBYSCORE", tenants_key(self._names), "-inf", oldest)
        key = told_key(self._names)
        await command(client, "HSET", key, self._gateway_id, round(now, 3))
        await command(client, "EXPIRE", key, self._ledger.keep_days * DAY)

    async def _find_generation(self, client: Client) -> str:
        """Drawn by whoever finds none: another one means that Redis has lost what it had."""
        key = f"{self._names.tag}:usage:generation"
        await command(client, "SET", key, secrets.token_hex(8), "NX")
        return str((await command(client, "GET", key) or b"").decode())


def usage_key(names: RedisNames, tenant: str, day: int) -> str:
    """What a tenant used on a day since 1970."""
    return f"{names.tenant(tenant)}:usage:{day}"


def tenants_key(names: RedisNames) -> str:
    """Tenants by the last day on which they used something."""
    return f"{names.tag}:usage:tenants"


def told_key(names: RedisNames) -> str:
    """When each gateway had told everything."""
    return f"{names.tag}:usage:told"


async def command(client: Client, *words: str | int | float) -> Any:
    """One command; its answer as redis-py shapes it."""
    return await client.execute_command(*words)
