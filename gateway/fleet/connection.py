"""The way to Redis: every call is bounded, and none is made while Redis is down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as ConnectionProblem

from .deadline import Deadline
from .redis_client import Client, make_client
from .redis_errors import RedisDown, is_outage
from .redis_url import parse_redis_url

__all__ = ["Client", "RedisDown", "RedisLink"]

T = TypeVar("T")

MAX_CALLS = 64
"""Calls at once, and so connections; more wait their turn."""
PROBE_SECONDS = 1.0
"""How long a probe may take to connect; afterwards it is held to the calls' own bound."""
LAG_SECONDS = 0.5
"""How long calls may fail for this process's own slowness before that counts as Redis's."""
_FIRST_WAIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 0.5
_SETTLED_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class RedisLink:
    """One Redis and a breaker before it.

    A call that fails for Redis's own state, or takes too long, opens the breaker: from then on
    calls raise at once. A probe in the background closes it again, so that no request has to find
    out. ``num_openings`` counts how often it opened.
    """

    def __init__(
        self,
        client: Client,
        *,
        shown: str,
        timeout: float,
        further_clients: list[Redis] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.is_up = True
        self.num_openings = 0
        self._shown = shown
        self._timeout = timeout
        self._further_clients = further_clients or []
        self._clock = clock
        self._turns = asyncio.Semaphore(MAX_CALLS)
        self._problem = ""
        self._wait_seconds = 0.0
        self._closed_at = float("-inf")
        self._lagging_since: float | None = None
        self._probe: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, url: str, *, timeout: float = 0.08) -> RedisLink:
        """A link to ``url`` (see ``redis_url``), ``timeout`` seconds a call; connects on first use.

        Raises ValueError that says what is wrong with the address, without a password in it.
        """
        address = parse_redis_url(url)
        client, further = make_client(address)
        return cls(client, shown=str(address), timeout=timeout, further_clients=further)

    async def run(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """What ``call`` gives, within the bound in all once it has its turn: connecting included.

        Raises RedisDown when Redis is down, at once if that is known already; errors that are the
        call's own fault come as they are. After RedisDown it is not known whether Redis did it.
        """
        async with self._turns:
            if not self.is_up:
                raise RedisDown(self._problem)
            deadline = Deadline(self._timeout)
            try:
                async with deadline:
                    result = await call(self.client)
            except Exception as error:
                if not is_outage(error):
                    raise
                if deadline.has_lagged and self._is_lag_new():
                    raise RedisDown("this process was too busy to hear Redis") from error
                self._open(error)
                raise RedisDown(self._problem) from error
            self._lagging_since = None
            return result

    async def close(self) -> None:
        """Stop probing and close all connections."""
        self.is_up = False
        self._problem = "the link is closed"
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        for client in (self.client, *self._further_clients):
            await client.aclose()

    def _is_lag_new(self) -> bool:
        """Whether it is too soon to hold against Redis what a busy loop did not hear from it."""
        now = self._clock()
        if self._lagging_since is None:
            self._lagging_since = now
        return now - self._lagging_since < LAG_SECONDS

    def _open(self, error: Exception) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self.num_openings += 1
        self._problem = f"Redis ({self._shown}) is down: {_explain(error, self._timeout)}"
        # What fails again soon after a good probe answers PING only: don't try it all the time.
        is_settled = self._clock() - self._closed_at > _SETTLED_SECONDS
        self._wait_seconds = 0.0 if is_settled else _longer(self._wait_seconds)
        self._probe = asyncio.create_task(self._probe_until_up(), name="redis probe")

    async def _probe_until_up(self) -> None:
        is_told = False
        while True:
            await asyncio.sleep(self._wait_seconds)
            problem = await self._try()
            if problem is None:
                break
            self._wait_seconds = _longer(self._wait_seconds)
            if not is_told:
                _logger.warning("%s", self._problem)
                is_told = True
        self.is_up = True
        self._closed_at = self._clock()
        if is_told:
            _logger.warning("Redis (%s) answers again", self._shown)

    async def _try(self) -> Exception | None:
        """Why a PING over new connections fails, None if it doesn't."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await _forget_connections(self.client)
                await _ping(self.client)
            async with Deadline(self._timeout):
                await _ping(self.client)
        except Exception as error:
            return error
        return None


def _explain(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout * 1000:.0f} ms"
    # Other errors may repeat the command, with what its arguments hold.
    is_plain = isinstance(error, (OSError, ConnectionProblem))
    return (is_plain and str(error)) or type(error).__name__


def _longer(seconds: float) -> float:
    return min(max(2 * seconds, _FIRST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)


async def _ping(client: Client) -> None:
    """PING; in a Cluster to each primary, since every one of them has some tenant's keys."""
    options = {"target_nodes": client.PRIMARIES} if isinstance(client, RedisCluster) else {}
    untyped: Any = client
    await untyped.execute_command("PING", **options)


async def _forget_connections(client: Client) -> None:
    """Close what is idle: it may lead to a server that is no longer the right one."""
    if isinstance(client, RedisCluster):
        await client.aclose()
    else:
        await client.connection_pool.disconnect(inuse_connections=False)
