"""``/v1/responses/ID``: kept responses, told or deleted by whichever replica knows them.

In a fleet with Redis that is every replica, and the first one's word is the last, but for a 503:
its Redis may be away and another's not. Without one it is the replica that answered, so a 404 of
another is not the last word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import msgspec

from .errors import GatewayError
from .estimates import NO_TOKENS
from .prepare import caller_headers
from .proxy.attempt import Refusal
from .proxy.client_side import ClientSide, Receive, Send, watched
from .proxy.exchange import exchange
from .proxy.guard import Guard, UpstreamLost
from .proxy.header_rules import RawHeaders, encode_headers, to_client, to_replica
from .proxy.job import Trail
from .proxy.parts import ProxyParts
from .proxy.upstream import LOST_ERRORS
from .types import Caller, ReplicaView, Usage

if TYPE_CHECKING:
    from .limits.limiter import Admission, Limiter
    from .tenants.directory import TenantDirectory

KEPT_RESPONSES = "/v1/responses/"
KEPT_ENDPOINT = f"{KEPT_RESPONSES}ID"
"""Stands for them all in logs and metrics."""
USAGE_LABEL = "-"
"""Under which requests count that are no model's; no model can have this name."""
TIMEOUT_SECONDS = 15.0
"""How long a replica may take for the first byte, and for each piece after it."""
UNKNOWN, AWAY = 404, 503
"""What a replica says that does not know a response, and one that can't ask its Redis."""
MAX_QUERY_BYTES = 2048
MAX_BUFFERED_BYTES = 1 << 16
"""What is longer goes out as it comes, and can't be asked for again elsewhere."""

_PATH = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}(?P<part>|/input_items|/cancel)")
_METHODS = {"": ("GET", "DELETE"), "/input_items": ("GET",), "/cancel": ("POST",)}


class KeptDoor:
    """Asks replicas in turn, as the caller's tenant."""

    def __init__(self, tenants: TenantDirectory, limiter: Limiter, proxy: ProxyParts) -> None:
        self._tenants, self._limiter, self._proxy = tenants, limiter, proxy

    async def answer(
        self,
        trail: Trail,
        target: tuple[str, str, bytes],
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a ``target``: method, path and query; raises as ``exchange``."""

        async def work(guard: Guard, client: ClientSide) -> None:
            async with watched(receive, guard):
                await self._serve(trail, target, headers, guard, client)

        await exchange(self._proxy, trail, send, work)

    async def _serve(
        self,
        trail: Trail,
        target: tuple[str, str, bytes],
        headers: Mapping[str, str],
        guard: Guard,
        client: ClientSide,
    ) -> None:
        """Raises GatewayError 400, 401, 404, 405, 429, 503."""
        caller = await self._tenants.identify(headers)
        trail.tenant, trail.tenant_is_known = caller.tenant, True
        method, url_path = _checked(*target)
        admission = await self._admit(caller)
        client.headers += encode_headers(admission.headers)
        try:
            sent = {**to_replica(headers), **caller_headers(caller)}
            await _Asking(self._proxy, guard, client, method, url_path, sent).run()
        finally:
            is_done = 0 < trail.status < 500
            no_tokens = Usage(num_input_tokens=0, num_output_tokens=0)
            admission.settle(no_tokens if is_done else None)

    async def _admit(self, caller: Caller) -> Admission:
        """As a request that takes no tokens."""
        record = self._tenants.record(caller.tenant)
        try:
            return await self._limiter.admit(caller, record, NO_TOKENS, USAGE_LABEL)
        except GatewayError as error:
            self._proxy.metrics.limited(error.code)
            raise


class _Asking:
    """One request on its way from replica to replica."""

    def __init__(
        self,
        proxy: ProxyParts,
        guard: Guard,
        client: ClientSide,
        method: str,
        url_path: str,
        headers: Mapping[str, str],
    ) -> None:
        self._proxy, self._guard, self._client = proxy, guard, client
        self._method, self._url_path, self._headers = method, url_path, headers
        self._refusal: Refusal | None = None
        self._may_be_deleted = False

    async def run(self) -> None:
        """Pass on the first last word, or the best there was; raises GatewayError, UpstreamLost."""
        up = [replica for replica in self._proxy.view.snapshot().replicas if replica.is_up]
        random.shuffle(up)
        for replica in up:
            try:
                if await self._ask(replica):
                    return
            except UpstreamLost:
                if self._client.has_started:
                    raise
                self._may_be_deleted = self._method == "DELETE"
        if self._refusal is not None:
            refusal = self._refusal
            await self._whole(refusal.status, refusal.headers, refusal.body)
            return
        raise GatewayError(
            503,
            "No replica can answer this now.",
            code="no_replica",
            headers={"retry-after": "1"},
        )

    async def _ask(self, replica: ReplicaView) -> bool:
        """Whether this one has the last word; raises UpstreamLost, ClientGone."""
        url = f"{replica.report.url}{self._url_path}"
        asking = self._proxy.upstream.ask(self._method, url, self._headers)
        try:
            response = await self._guard.read(asking, TIMEOUT_SECONDS)
        except LOST_ERRORS as error:
            raise UpstreamLost(type(error).__name__) from error
        try:
            if response.status in (401, 403) or (
                response.status >= 500 and response.status != AWAY
            ):
                return False
            return await self._pass_on(response)
        finally:
            response.release()

    async def _pass_on(self, response: aiohttp.ClientResponse) -> bool:
        first = b""
        while more := await self._read(response):
            first += more
            if len(first) > MAX_BUFFERED_BYTES:
                break
        status, headers = response.status, to_client(response.headers)
        if status == AWAY or (status == UNKNOWN and not self._proxy.shares_responses):
            if self._refusal is None or status == UNKNOWN:
                self._refusal = Refusal(status, headers, first)
            return False
        if not more:
            await self._whole(status, headers, first)
            return True
        await self._client.start(status, headers)
        await self._client.write(first)
        while more := await self._read(response):
            await self._client.write(more)
        await self._client.write(b"", more=False)
        return True

    async def _whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send it; what a lost replica may have deleted, and no other one knows, is deleted."""
        if status == UNKNOWN and self._may_be_deleted:
            name = self._url_path.removeprefix(KEPT_RESPONSES).partition("?")[0]
            body = msgspec.json.encode({"id": name, "object": "response", "deleted": True})
            status, headers = 200, encode_headers({"content-type": "application/json"})
        await self._client.whole(status, headers, body)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The next piece, none at the end."""
        try:
            return await self._guard.read(response.content.readany(), TIMEOUT_SECONDS)
        except LOST_ERRORS as error:
            raise UpstreamLost(type(error).__name__) from error


def _checked(method: str, path: str, query: bytes) -> tuple[str, str]:
    """Method, and path with query, as replicas get them; raises GatewayError 400, 404, 405."""
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
    return method, f"{path}?{text}" if text else path
