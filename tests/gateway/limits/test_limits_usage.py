"""Usage by tenant, label and day: counted here, told to Redis, never lost with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from redis_server import RedisServer, link_to_empty, redis_server

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.limits.build import build_limits
from branchline.gateway.limits.ledger import MAX_LABELS, Ledger
from branchline.gateway.limits.limits import Limits
from branchline.gateway.limits.telling import UsageTeller
from branchline.gateway.limits.usage import UsageReader, UsageReport
from branchline.gateway.types import Caller, Estimate, Usage

NAMES = RedisNames("f")
DAY = date(2026, 11, 21)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
TOOK = Usage(num_input_tokens=10, num_output_tokens=5, num_cached_tokens=4)


@dataclass(frozen=True)
class Record:
    limits: Limits | None


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as made:
        yield made


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[RedisLink]:
    async with link_to_empty(server) as made:
        yield made


class Gateway:
    """A ledger, and what tells and reads it."""

    def __init__(self, link: RedisLink, directory: Path | None = None, name: str = "g1") -> None:
        self.ledger = Ledger(directory, is_shared=True)
        self.teller = UsageTeller(link, NAMES, self.ledger, name)
        self.reader = UsageReader(link, NAMES, self.ledger, clock=lambda: NOON)
        self.num_losses = 0

    async def tell(self, now: float) -> None:
        await self.teller.tell(now, self._lose)

    def _lose(self) -> None:
        self.num_losses += 1

    def count(self, tenant: str, label: str, times: int = 1, now: float = NOON) -> None:
        for _ in range(times):
            self.ledger.add(tenant, label, TOOK, now)


def table(report: UsageReport) -> dict[tuple[str, str, str], tuple[int, ...]]:
    return {
        (row.tenant, row.day.isoformat(), row.label): (
            row.num_requests,
            row.num_input_tokens,
            row.num_output_tokens,
            row.num_cached_tokens,
        )
        for row in report.rows
    }


async def test_gateways_counts_add_up(link: RedisLink) -> None:
    one, two = Gateway(link, name="g1"), Gateway(link, name="g2")
    one.count("acme", "legal", 3)
    two.count("acme", "legal", 2)
    two.count("acme", "base:v1")
    two.count("zeta", "base", now=NOON - 86_400)
    for gateway in (one, two, one):
        await gateway.tell(NOON)
    one.count("acme", "legal")
    await one.tell(NOON)
    report = await two.reader.read(None, DAY - timedelta(days=1), DAY)
    assert table(report) == {
        ("acme", "2026-11-21", "legal"): (6, 60, 30, 24),
        ("acme", "2026-11-21", "base:v1"): (1, 10, 5, 4),
        ("zeta", "2026-11-20", "base"): (1, 10, 5, 4),
    }
    assert (report.scope, report.gaps) == ("fleet", [])
    assert table(await two.reader.read(["zeta"], DAY, DAY)) == {}


async def test_the_report_says_how_far_it_can_be_trusted(link: RedisLink) -> None:
    alive, dead, closed = (Gateway(link, name=name) for name in ("alive", "dead", "closed"))
    await dead.tell(NOON - 60)
    await alive.tell(NOON - 2)
    await closed.tell(NOON - 1)
    await closed.teller.leave()
    report = await alive.reader.read(None, DAY, DAY)
    assert report.complete_until == datetime.fromtimestamp(NOON - 2, UTC)
    (gap,) = report.gaps
    assert (gap.gateway, gap.since) == ("dead", datetime.fromtimestamp(NOON - 60, UTC))


async def test_an_empty_redis_gets_all_days_again(
    link: RedisLink, server: RedisServer, tmp_path: Path
) -> None:
    earlier = Gateway(link, tmp_path)
    earlier.count("acme", "legal", 4)
    earlier.count("acme", "legal", 2, now=NOON - 86_400)
    await earlier.ledger.save()  # and dies before it tells
    gateway = Gateway(link, tmp_path)
    gateway.count("acme", "legal")
    await gateway.tell(NOON)
    expected = {
        ("acme", "2026-11-20", "legal"): (2, 20, 10, 8),
        ("acme", "2026-11-21", "legal"): (5, 50, 25, 20),
    }
    for _ in range(2):
        report = await gateway.reader.read(["acme"], DAY - timedelta(days=1), DAY)
        assert table(report) == expected
        with server.client() as client:
            client.flushall()
        await gateway.tell(NOON)


async def test_old_news_does_not_undo_newer(link: RedisLink) -> None:
    gateway = Gateway(link)
    gateway.count("acme", "legal")
    (old,) = gateway.ledger.own_pages()
    gateway.count("acme", "legal")
    await gateway.tell(NOON)
    gateway.ledger._pages[(old.day, old.tenant)].totals.update(old.totals)
    gateway.ledger.put_back(old)
    await gateway.tell(NOON)
    report = await gateway.reader.read(["acme"], DAY, DAY)
    assert table(report)["acme", "2026-11-21", "legal"][0] == 2


async def test_without_redis_the_reader_answers_from_the_ledger(tmp_path: Path) -> None:
    earlier = Ledger(tmp_path, is_shared=False)
    earlier.add("acme", "legal", TOOK, NOON)
    await earlier.save()
    ledger = Ledger(tmp_path, is_shared=False)
    ledger.add("acme", "legal", TOOK, NOON)
    await ledger.save()
    reader = UsageReader(None, NAMES, ledger, clock=lambda: NOON)
    report = await reader.read(None, DAY, DAY)
    assert table(report) == {("acme", "2026-11-21", "legal"): (2, 20, 10, 8)}
    assert report.scope == "gateway"


async def test_days_in_the_wrong_order_are_refused(link: RedisLink) -> None:
    reader = Gateway(link).reader
    with pytest.raises(ValueError, match="first, last: must be 1 to 366 days"):
        await reader.read(None, DAY, DAY - timedelta(days=1))


async def test_labels_are_bounded() -> None:
    ledger = Ledger(None, is_shared=True)
    for index in range(MAX_LABELS + 50):
        ledger.add("acme", f"adapter-{index}", TOOK, NOON)
    (page,) = ledger.own_pages()
    assert len(page.totals) == MAX_LABELS + 1
    assert page.totals["other"][0] == 50


async def test_days_that_are_over_go_once_they_are_safe(link: RedisLink, tmp_path: Path) -> None:
    gateway = Gateway(link, tmp_path)
    gateway.count("acme", "legal", now=NOON - 86_400)
    gateway.ledger.prune(NOON)
    assert gateway.ledger.own_pages(), "neither told nor saved"
    await gateway.tell(NOON)
    gateway.ledger.prune(NOON)
    assert gateway.ledger.own_pages(), "not saved"
    await gateway.ledger.save()
    gateway.ledger.prune(NOON)
    assert not gateway.ledger.own_pages()
    assert len(list(gateway.ledger.saved_pages())) == 1
    gateway.ledger.prune(NOON + 91 * 86_400)
    assert not list(tmp_path.iterdir()), "kept for ninety days"


async def test_a_broken_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / f"20778.{'a' * 16}.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    ledger = Ledger(tmp_path, is_shared=True)
    assert list(ledger.saved_pages()) == []


async def test_usage_is_kept_for_so_long_and_no_longer(
    link: RedisLink, server: RedisServer
) -> None:
    gateway = Gateway(link)
    gateway.count("acme", "legal")
    await gateway.tell(NOON)
    with server.client() as client:
        (key,) = client.keys("*:usage:2*")
        assert client.ttl(key) > 89 * 86_400
        await gateway.tell(NOON + 91 * 86_400)
        assert client.zcard(f"{NAMES.tag}:usage:tenants") == 0


async def test_the_limiter_tells_and_saves_in_the_background(
    server: RedisServer, link: RedisLink, tmp_path: Path
) -> None:
    limiter, reader = build_limits(
        link, NAMES, gateway_id="g", num_gateways=lambda: 1, state_dir=tmp_path
    )
    running = asyncio.create_task(limiter.run())
    record = Record(Limits(max_in_flight=1))
    estimate = Estimate(num_input_tokens=10, num_output_tokens=5)
    first = await limiter.admit(Caller(tenant="acme"), record, estimate, "legal")
    with pytest.raises(GatewayError, match="max_in_flight is 1"):
        await limiter.admit(Caller(tenant="acme"), record, estimate, "legal")
    first.settle(TOOK)
    with server.client() as client:
        deadline = time.monotonic() + 10
        while client.exists(f"{NAMES.tenant('acme')}:flights"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    second = await limiter.admit(Caller(tenant="acme"), record, estimate, "legal")
    running.cancel()
    second.settle(TOOK)
    await limiter.close()
    today = datetime.now(UTC).date()
    report = await reader.read(["acme"], today - timedelta(days=1), today)
    assert sum(row.num_requests for row in report.rows) == 2
    assert report.gaps == [], "it took its leave"
    assert list((tmp_path / "usage").glob("*.json"))


async def test_leases_do_not_wait_for_usage(
    link: RedisLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of years may have to be told to a Redis that came back empty."""
    hanging = asyncio.Event()

    async def hang(teller: UsageTeller, now: float, on_loss: Callable[[], None]) -> None:
        on_loss()
        hanging.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(UsageTeller, "tell", hang)
    limiter, _ = build_limits(link, NAMES, gateway_id="g", num_gateways=lambda: 1, state_dir=None)
    running = asyncio.create_task(limiter.run())
    record = Record(Limits(max_in_flight=1))
    estimate = Estimate(num_input_tokens=10, num_output_tokens=5)
    async with asyncio.timeout(10):
        await hanging.wait()
        first = await limiter.admit(Caller(tenant="acme"), record, estimate, "legal")
        first.settle(TOOK)
        while await link.run(lambda client: client.exists(f"{NAMES.tenant('acme')}:flights")):
            await asyncio.sleep(0.01)
    running.cancel()
