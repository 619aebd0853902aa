"""Lets requests through as their tenant's limits allow; Redis down, by this gateway's share.

A request of a tenant with limits costs one call to Redis, and none while it is far from all of them
(see ``headroom``); all else is told in the background. What is admitted while Redis is away counts
in this process at once, and in Redis when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Protocol

from redis.exceptions import RedisError

from ..fleet.connection import RedisDown, RedisLink
from ..fleet.redis_names import RedisNames
from ..types import Caller, Estimate, Usage
from . import scripts
from .account import Account
from .answers import rate_headers, refusal
from .ledger import Ledger
from .limits import LIMIT_NAMES, Limits
from .telling import UsageTeller
from .windows import NOTHING, Amounts, Reserve, Verdict

TELL_SECONDS = 0.1
USAGE_SECONDS = 1.0
SAVE_SECONDS = 5.0
PRUNE_SECONDS = 60.0
MAX_TOKENS = 10**9
"""The most that is reserved of a kind; sums of a million such are exact in Lua's doubles."""
MAX_CALLS = 16
"""Tenants told of at once."""

_logger = logging.getLogger(__name__)


class HasLimits(Protocol):
    """A tenant's record, as far as limits go."""

    @property
    def limits(self) -> Limits | None:
        """None: there are none."""


class Admission:
    """One request let through; ``headers`` go with its answer."""

    def __init__(self, headers: dict[str, str], settle: Callable[[Usage | None], None]) -> None:
        self.headers = headers
        self._settle = settle
        self._is_settled = False

    def settle(self, usage: Usage | None) -> None:
        """What it took; None: nothing, all of it is given back. Only the first call counts."""
        if not self._is_settled:
            self._is_settled = True
            self._settle(usage)


class Limiter:
    """One a gateway. ``link`` None: there is no Redis, and this gateway goes by its share for good.

    ``num_gateways`` says how many gateways live. ``refused`` counts refusals by limit,
    ``num_alone`` verdicts without Redis. ``redis_clock`` (ms) stands in for Redis' own in tests.
    """

    def __init__(
        self,
        link: RedisLink | None,
        names: RedisNames,
        *,
        gateway_id: str,
        num_gateways: Callable[[], int],
        ledger: Ledger,
        clock: Callable[[], float] = time.time,
        redis_clock: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._link = link
        self._names = names
        # Sequence numbers begin anew with each process, and so must the name they belong to.
        self._writer = ledger.writer
        self._num_gateways = num_gateways
        self._ledger = ledger
        self._teller = UsageTeller(link, names, ledger, gateway_id) if link is not None else None
        self._clock = clock
        self._redis_clock = redis_clock
        self._skew = 0
        self._numbers = count(1)
        self._sequences = count(1)
        self._accounts: dict[str, tuple[Account, scripts.TenantKeys]] = {}
        self.refused: Counter[str] = Counter()
        self.num_alone = 0
        self._save_at = self._prune_at = -math.inf

    async def admit(
        self, caller: Caller, record: HasLimits | None, estimate: Estimate, label: str
    ) -> Admission:
        """Reserve what a request may take; raises GatewayError 429 that names the limit."""
        limits = record.limits if record is not None else None
        if limits is None or limits.is_empty:
            return Admission({}, lambda usage: self._count(caller.tenant, label, usage))
        flight = f"{self._writer}:{next(self._numbers)}"
        tokens = (_within(estimate.num_input_tokens), _within(estimate.num_output_tokens))
        verdict, account = await self._verdict(caller.tenant, flight, tokens, limits)
        if verdict.refused_by is not None:
            self.refused[LIMIT_NAMES[verdict.refused_by]] += 1
            raise refusal(verdict, limits.in_order, tokens)

        def settle(usage: Usage | None) -> None:
            account.settle(flight, _amounts(usage))
            self._count(caller.tenant, label, usage)

        return Admission(rate_headers(verdict, limits.in_order), settle)

    async def run(self) -> None:
        """Tell Redis what there is to tell, for good; ``close`` afterwards."""
        # Apart from each other: all of the usage of years may have to be told, leases can't wait.
        async with asyncio.TaskGroup() as works:
            works.create_task(self._again(self._tell_and_keep, TELL_SECONDS))
            works.create_task(self._again(self.tell_usage, USAGE_SECONDS))

    async def _again(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except RedisDown:
                pass  # The link says so itself; all of it is told later.
            except Exception:
                _logger.exception("limits: telling failed")
                await asyncio.sleep(USAGE_SECONDS)

    async def _tell_and_keep(self) -> None:
        now = self._clock()
        if now >= self._save_at:
            self._save_at = now + SAVE_SECONDS
            await self._ledger.save()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS
            self._prune(now)
        await self.tell()

    async def close(self) -> None:
        """Tell and save the last; after ``run`` was cancelled."""
        try:
            await self.tell()
            await self.tell_usage()
            if self._teller is not None:
                await self._teller.leave()
        except RedisDown:
            _logger.warning("limits: Redis is away, the last usage is in the state directory only")
        try:
            await self._ledger.save()
        except OSError as error:
            _logger.error("limits: the last usage can't be saved: %s", error)

    async def tell(self) -> None:
        """Settle and renew at Redis; raises RedisDown."""
        if self._link is None or not self._link.is_up:
            return
        now = self._now()
        waiting = [pair for pair in self._accounts.values() if pair[0].news(now) is not None]
        for first in range(0, len(waiting), MAX_CALLS):
            calls = (
                self._tell_of(self._link, *pair) for pair in waiting[first : first + MAX_CALLS]
            )
            # All of them end before the first one's error goes on: no account is told of twice.
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                if answer is not None:
                    raise answer

    async def tell_usage(self) -> None:
        """Bring the ledger to Redis; raises RedisDown."""
        if self._teller is None or self._link is None or not self._link.is_up:
            return
        await self._teller.tell(self._clock(), self._heed_loss)

    def _heed_loss(self) -> None:
        for account, _ in self._accounts.values():
            account.wants_word = True

    def check(self) -> None:
        """Raises AssertionError unless each account agrees with itself."""
        for account, _ in self._accounts.values():
            account.check()

    async def _verdict(
        self, tenant: str, flight: str, tokens: tuple[int, int], limits: Limits
    ) -> tuple[Verdict, Account]:
        account, _ = self._account(tenant)
        if self._link is not None:
            near = account.admit_at_once(self._now(), flight, tokens, limits, self._num_gateways())
            if near is not None:
                return near, account
        is_in_doubt = self._link is not None and self._link.is_up
        try:
            answer = await self._ask(tenant, flight, tokens, limits)
        except BaseException:
            self._account(tenant)[0].doubt(flight, self._now() // 1000)
            raise
        account, _ = self._account(tenant)
        if answer is not None:
            verdict, epoch = answer
            self._skew = verdict.now - round(self._clock() * 1000)
            account.hear(verdict.now, verdict.used, epoch)
            if verdict.refused_by is None:
                account.accept(flight, Reserve(verdict.second, *tokens), verdict.now)
            return verdict, account
        self.num_alone += 1
        now = self._now()
        share = account.share(now, limits, self._num_gateways())
        verdict = account.admit_alone(now, flight, tokens, share)
        if is_in_doubt:
            account.doubt(flight, now // 1000)
        return verdict, account

    async def _ask(
        self, tenant: str, flight: str, tokens: tuple[int, int], limits: Limits
    ) -> tuple[Verdict, str] | None:
        """What Redis says; None: it does not answer."""
        if self._link is None:
            return None
        _, keys = self._account(tenant)
        now = self._redis_clock()
        try:
            return await self._link.run(
                lambda client: scripts.admit(client, keys, flight, tokens, limits, now=now)
            )
        except RedisDown:
            return None
        except RedisError:
            _logger.exception("limits: Redis refuses the script")
            return None

    async def _tell_of(self, link: RedisLink, account: Account, keys: scripts.TenantKeys) -> None:
        while (news := account.news(self._now())) is not None:
            epochs = (account.epoch, f"{self._writer}:{next(self._numbers)}")
            now = self._redis_clock()
            call = partial(scripts.settle, keys=keys, news=news, epochs=epochs, now=now)
            account.told(await link.run(call))

    def _account(self, tenant: str) -> tuple[Account, scripts.TenantKeys]:
        held = self._accounts.get(tenant)
        if held is None:
            keys = scripts.TenantKeys.of(self._names, tenant, self._writer)
            held = self._accounts[tenant] = (Account(self._sequences), keys)
        return held

    def _count(self, tenant: str, label: str, usage: Usage | None) -> None:
        if usage is not None:
            self._ledger.add(tenant, label, usage, self._clock())

    def _prune(self, now: float) -> None:
        for tenant, (account, _) in list(self._accounts.items()):
            account.windows.advance(self._now())
            if account.is_idle:
                del self._accounts[tenant]
        self._ledger.prune(now)

    def _now(self) -> int:
        """Redis' clock as far as known, ms."""
        return round(self._clock() * 1000) + self._skew


def _within(num_tokens: int) -> int:
    """Estimates come from what clients ask for, which may be anything."""
    return min(max(num_tokens, 0), MAX_TOKENS)


def _amounts(usage: Usage | None) -> Amounts:
    if usage is None:
        return NOTHING
    return (1, usage.num_input_tokens, usage.num_output_tokens)
