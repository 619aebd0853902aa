"""Probes that generate a token: that a replica answers ``/health`` proves nothing."""

from __future__ import annotations

from typing import Protocol

import aiohttp

from ..fleet.headers import FLEET_SECRET, TENANT
from ..fleet.identity import PROBE_TENANT
from ..fleet.records import ReplicaReport
from ..types import Outcome

PROBE_BODY = {"prompt": "1", "max_tokens": 1, "temperature": 0.0}
PROBE_SECONDS = 5.0


class Prober(Protocol):
    """Asks one replica for a token; never raises for what the replica does."""

    async def probe(self, report: ReplicaReport) -> Outcome:
        """How it took it."""
        ...


class HttpProber:
    """One short completion of the base model, in a tenant of its own."""

    def __init__(
        self, session: aiohttp.ClientSession, secret: str, timeout: float = PROBE_SECONDS
    ) -> None:
        self._session = session
        self._headers = {FLEET_SECRET: secret, TENANT: PROBE_TENANT}
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def probe(self, report: ReplicaReport) -> Outcome:
        """``ok`` only for a whole answer."""
        body = PROBE_BODY | {"model": report.models[0] if report.models else ""}
        url = f"{report.url}/v1/completions"
        try:
            async with self._session.post(
                url, json=body, headers=self._headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                await response.read()
                return outcome_of(response.status)
        except TimeoutError:
            return "stalled"
        except (aiohttp.ClientError, OSError):
            return "unreachable"


def outcome_of(status: int) -> Outcome:
    """What a status says of the replica: 429 and 503 that it is full, 4xx of the request only."""
    if status < 400:
        return "ok"
    if status in (429, 503):
        return "overloaded"
    return "refused" if status < 500 else "failed"
