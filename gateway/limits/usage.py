"""Usage by tenant, label and UTC day, and how far it can be trusted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec

from ..fleet.connection import RedisDown, RedisLink
from ..fleet.redis_names import RedisNames
from .ledger import Ledger, Totals
from .telling import command, tenants_key, told_key, usage_key

SILENT_SECONDS = 10.0
"""A gateway that has not told for so long, and did not say that it ends, is taken for dead."""
MAX_DAYS = 366
"""Days of one question."""

_EPOCH = date(1970, 1, 1)
_NOTHING: Totals = (0, 0, 0, 0)


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant took under one label on one UTC day."""

    tenant: str
    day: date
    label: str
    num_requests: int
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


class UsageGap(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway that ended without a word: what it counted after ``since`` may be missing."""

    gateway: str
    since: datetime


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Rows, and how far they can be trusted.

    Requests that were over at a living gateway before ``complete_until`` are in. ``scope`` is
    ``gateway`` where Redis can't be asked: then it is this gateway's own count alone.
    """

    rows: list[UsageRow]
    scope: str
    complete_until: datetime
    gaps: list[UsageGap]


class UsageReader:
    """Answers what tenants used; with ``link`` None, or Redis away, from this gateway's ledger."""

    def __init__(
        self,
        link: RedisLink | None,
        names: RedisNames,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._names = names
        self._ledger = ledger
        self._clock = clock

    async def read(self, tenants: Sequence[str] | None, first: date, last: date) -> UsageReport:
        """Rows of these tenants (None: all) from ``first`` to ``last``, both with them.

        Raises ValueError that names what is wrong with the days.
        """
        if not 0 <= (last - first).days < MAX_DAYS:
            raise ValueError(f"first, last: must be 1 to {MAX_DAYS} days, in this order")
        days = range((first - _EPOCH).days, (last - _EPOCH).days + 1)
        if self._link is not None:
            try:
                return await self._read_shared(self._link, tenants, days)
            except RedisDown:
                pass
        return await self._read_own(tenants, days)

    async def _read_shared(
        self, link: RedisLink, tenants: Sequence[str] | None, days: range
    ) -> UsageReport:
        names = self._names
        told = await link.run(lambda client: command(client, "HGETALL", told_key(names)))
        if tenants is None:
            words = ("ZRANGEBYSCORE", tenants_key(names), days[0], "+inf")
            found = await link.run(lambda client: command(client, *words))
            tenants = sorted(name.decode() for name in found)
        rows: list[UsageRow] = []
        for tenant in tenants:
            keys = [usage_key(names, tenant, day) for day in days]
            held = await asyncio.gather(*(self._totals(link, key) for key in keys))
            for day, totals in zip(days, held, strict=True):
                rows += _rows(tenant, day, totals)
        return self._report(rows, {name.decode(): float(then) for name, then in told.items()})

    async def _totals(self, link: RedisLink, key: str) -> dict[str, Totals]:
        return _by_label(await link.run(lambda client: command(client, "HGETALL", key)))

    def _report(self, rows: list[UsageRow], told: dict[str, float]) -> UsageReport:
        now = self._clock()
        alive = [then for then in told.values() if then > now - SILENT_SECONDS]
        dead = {name: then for name, then in told.items() if then <= now - SILENT_SECONDS}
        return UsageReport(
            rows=rows,
            scope="fleet",
            complete_until=_moment(min(alive, default=now)),
            gaps=[UsageGap(gateway=k, since=_moment(v)) for k, v in sorted(dead.items())],
        )

    async def _read_own(self, tenants: Sequence[str] | None, days: range) -> UsageReport:
        saved = await asyncio.to_thread(lambda: [*self._ledger.saved_pages()])
        pages = {(p.day, p.tenant, p.writer): p for p in (*saved, *self._ledger.own_pages())}
        sums: dict[tuple[str, int], dict[str, Totals]] = {}
        for page in pages.values():
            if page.day in days and (tenants is None or page.tenant in tenants):
                by_label = sums.setdefault((page.tenant, page.day), {})
                for label, totals in page.totals.items():
                    by_label[label] = _plus(by_label.get(label, _NOTHING), totals)
        rows = [
            row for (tenant, day), held in sorted(sums.items()) for row in _rows(tenant, day, held)
        ]
        now = _moment(self._clock())
        return UsageReport(rows=rows, scope="gateway", complete_until=now, gaps=[])


def _by_label(fields: Mapping[bytes, bytes]) -> dict[str, Totals]:
    """Sums over writers."""
    sums: dict[str, Totals] = {}
    for name, value in fields.items():
        label = name.decode().partition(":")[2]
        r, i, o, c = map(int, value.split())
        sums[label] = _plus(sums.get(label, _NOTHING), (r, i, o, c))
    return sums


def _rows(tenant: str, day: int, by_label: dict[str, Totals]) -> list[UsageRow]:
    return [
        UsageRow(
            tenant=tenant,
            day=_EPOCH + timedelta(days=day),
            label=label,
            num_requests=requests,
            num_input_tokens=num_input,
            num_output_tokens=num_output,
            num_cached_tokens=num_cached,
        )
        for label, (requests, num_input, num_output, num_cached) in sorted(by_label.items())
    ]


def _plus(left: Totals, right: Totals) -> Totals:
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2], left[3] + right[3])


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
