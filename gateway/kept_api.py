"""``/v1/responses/ID``: kept responses, told or deleted by whichever replica knows them.

In a fleet with Redis that is every replica; without one it is the replica that answered, so one
that says 404 is not the last word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
from starlette.responses import Response

from .errors import GatewayError
from .fleet import headers as fleet
from .prepare import caller_headers
from .proxy.header_rules import to_client, to_replica
from .proxy.parts import ProxyParts
from .proxy.upstream import LOST_ERRORS
from .types import Caller, ReplicaView

if TYPE_CHECKING:
    from .tenants.directory import TenantDirectory

KEPT_RESPONSES = "/v1/responses/"
TIMEOUT_SECONDS = 15.0
MAX_QUERY_BYTES = 2048

_PATH = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}(?P<part>|/input_items|/cancel)")
_METHODS = {"": ("GET", "DELETE"), "/input_items": ("GET",), "/cancel": ("POST",)}


class KeptDoor:
    """Asks replicas in turn, as the caller's tenant."""

    def __init__(self, tenants: TenantDirectory, proxy: ProxyParts, secret: str) -> None:
        self._tenants, self._proxy, self._secret = tenants, proxy, secret

    async def answer(
        self, method: str, path: str, query: bytes, headers: Mapping[str, str]
    ) -> Response:
        """Raises GatewayError 401, 404, 405, 503."""
        caller = await self._tenants.identify(headers)
        found = _PATH.fullmatch(path)
        if found is None:
            raise GatewayError(404, "There is nothing at this path.", code="not_found")
        allowed = _METHODS[found["part"]]
        if method not in allowed:
            raise GatewayError(
                405,
                f"This does not take {method}; allowed: {', '.join(allowed)}.",
                code="method_not_allowed",
                headers={"allow": ", ".join(allowed)},
            )
        if len(query) > MAX_QUERY_BYTES:
            raise GatewayError(400, f"The query is longer than {MAX_QUERY_BYTES} bytes.")
        text = quote(query.decode("latin-1"), safe="=&%+,[]_-.~*")
        return await self._ask_all(caller, method, f"{path}?{text}" if text else path, headers)

    async def _ask_all(
        self, caller: Caller, method: str, path: str, headers: Mapping[str, str]
    ) -> Response:
        up = [replica for replica in self._proxy.view.snapshot().replicas if replica.is_up]
        random.shuffle(up)
        last: Response | None = None
        for replica in up:
            told = await self._ask(replica, caller, method, path, headers)
            if told is None:
                continue
            if told.status_code != 404 and told.status_code < 500:
                return told
            if last is None or told.status_code == 404:
                last = told
        if last is not None and last.status_code == 404:
            return last
        raise GatewayError(
            503,
            "No replica can answer this now.",
            code="no_replica",
            headers={"retry-after": "1"},
        )

    async def _ask(
        self,
        replica: ReplicaView,
        caller: Caller,
        method: str,
        path: str,
        headers: Mapping[str, str],
    ) -> Response | None:
        """What one replica says; None where it can't be reached or says too much."""
        sent = {
            **to_replica(headers),
            **caller_headers(caller),
            fleet.FLEET_SECRET: self._secret,
        }
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        limit = self._proxy.limits.max_body_bytes
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
                session.request(
                    method, f"{replica.report.url}{path}", headers=sent, allow_redirects=False
                ) as response,
            ):
                body = await response.content.read(limit + 1)
                while len(body) <= limit and (more := await response.content.read(limit)):
                    body += more
        except LOST_ERRORS:
            return None
        if len(body) > limit or response.status in (401, 403):
            return None
        answer = Response(body, response.status)
        answer.raw_headers += to_client(response.headers)
        return answer
