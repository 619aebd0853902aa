"""What this gateway has counted of its tenants' use, by UTC day; kept in files over a restart.

Totals only grow, and each process writes its own: so they can be told to Redis again and again,
and a Redis that came back empty gets them all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..types import Usage
from .windows import DAY

MAX_LABELS = 1000
"""Labels of one tenant and day; more are counted together as ``other``."""

Totals = tuple[int, int, int, int]
"""Requests, and input, output and cached tokens."""

_FILE = re.compile(r"(\d{1,7})\.([0-9a-f]{16})\.json")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """One process's totals of one tenant and day (since 1970), by label."""

    day: int
    tenant: str
    writer: str
    totals: dict[str, Totals]


class Ledger:
    """``directory`` holds a file a day and process; None: in memory only.

    ``is_shared``: Redis is told, and keeps the days that are over.
    """

    def __init__(self, directory: Path | None, *, is_shared: bool, keep_days: int = 90) -> None:
        self.keep_days = keep_days
        self.writer = secrets.token_hex(8)
        self._directory = directory
        self._is_shared = is_shared
        self._pages: dict[tuple[int, str], Page] = {}
        self._untold: set[tuple[int, str]] = set()
        self._unsaved: set[int] = set()

    def add(self, tenant: str, label: str, usage: Usage, now: float) -> None:
        """Count a request that is over; ``now`` in seconds since 1970."""
        key = (int(now) // DAY, tenant)
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = Page(*key, self.writer, {})
        if label not in page.totals and len(page.totals) >= MAX_LABELS:
            label = "other"
        r, i, o, c = page.totals.get(label, (0, 0, 0, 0))
        i, o = i + usage.num_input_tokens, o + usage.num_output_tokens
        page.totals[label] = (r + 1, i, o, c + usage.num_cached_tokens)
        self._untold.add(key)
        self._unsaved.add(key[0])

    def take_untold(self) -> list[Page]:
        """What Redis must be told; ``put_back`` what it could not be told."""
        keys, self._untold = self._untold, set()
        return [_copy(self._pages[key]) for key in keys]

    def put_back(self, page: Page) -> None:
        """It is to be told again."""
        if (page.day, page.tenant) in self._pages:
            self._untold.add((page.day, page.tenant))

    def own_pages(self) -> list[Page]:
        """What is in memory: today's, and what is not safe elsewhere yet."""
        return [_copy(page) for page in self._pages.values()]

    def saved_pages(self) -> Iterator[Page]:
        """What the files hold, of earlier processes too; reads one file at a time."""
        for path, day, writer in self._files():
            yield from _read(path, day, writer)

    async def save(self) -> None:
        """Write the days that changed; raises OSError."""
        days, self._unsaved = self._unsaved, set()
        if self._directory is None:
            return
        try:
            for day in days:
                totals = {
                    tenant: page.totals for (d, tenant), page in self._pages.items() if d == day
                }
                data = msgspec.json.encode(totals)
                name = f"{day}.{self.writer}.json"
                await asyncio.to_thread(_write, self._directory, name, data)
        except OSError:
            self._unsaved |= days
            raise

    def prune(self, now: float) -> None:
        """Let go of days that are over, once they are safe, and of files kept long enough."""
        today = int(now) // DAY
        for key in [key for key in self._pages if self._may_go(key, today)]:
            del self._pages[key]
            self._untold.discard(key)
        for path, day, _ in self._files():
            if day <= today - self.keep_days:
                path.unlink(missing_ok=True)

    def _may_go(self, key: tuple[int, str], today: int) -> bool:
        day = key[0]
        if day >= today or day in self._unsaved or (self._is_shared and key in self._untold):
            return False
        is_elsewhere = self._is_shared or self._directory is not None
        return is_elsewhere or day <= today - self.keep_days

    def _files(self) -> list[tuple[Path, int, str]]:
        if self._directory is None or not self._directory.is_dir():
            return []
        found = ((path, _FILE.fullmatch(path.name)) for path in self._directory.iterdir())
        return [(path, int(match[1]), match[2]) for path, match in found if match]


def _copy(page: Page) -> Page:
    return Page(page.day, page.tenant, page.writer, dict(page.totals))


def _write(directory: Path, name: str, data: bytes) -> None:
    """Whole or not at all."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = directory / f"{name}.part"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(directory / name)


def _read(path: Path, day: int, writer: str) -> Iterator[Page]:
    try:
        held = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Totals]])
    except (OSError, msgspec.MsgspecError) as error:
        _logger.warning("usage: %s can't be read: %s", path.name, error)
        return
    for tenant, totals in held.items():
        yield Page(day, tenant, writer, totals)
