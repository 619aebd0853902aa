"""HTTP to replicas: pooled connections, no redirects, no proxies, nothing unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter

from ..fleet import headers as fleet

PROBE_SECONDS = 1.0
IDLE_SECONDS = 15.0
READ_BUFFER_BYTES = 1 << 16

# What aiohttp raises for a connection that was not made or broke. A `TimeoutError` is one too.
LOST_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)


class _KnownRequest(msgspec.Struct):
    known: bool = False


class _Body(aiohttp.BytesPayload):
    """A request's body; calls ``sent`` when there is a connection for it."""

    def __init__(self, value: bytes, sent: Callable[[], None]) -> None:
        super().__init__(value)
        self._sent = sent

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._sent()
        await super().write_with_length(writer, content_length)


class Upstream:
    """All connections to replicas.

    ``secret`` is the fleet's; a connection is made within ``connect_timeout`` seconds.
    """

    def __init__(self, secret: str, connect_timeout: float) -> None:
        self._secret = {fleet.FLEET_SECRET: secret}
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, sent: Callable[[], None]
    ) -> aiohttp.ClientResponse:
        """Send a request; returns once the answer's head is here; raises LOST_ERRORS.

        ``sent`` is called when the request goes out. ``release`` the answer once it is
        read, else ``close`` it, which ends the connection.
        """
        return await self._opened().post(
            url,
            data=_Body(body, sent),
            headers={**headers, **self._secret},
            allow_redirects=False,
        )

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a request without a body; else as ``post``."""
        return await self._opened().request(
            method, url, headers={**headers, **self._secret}, allow_redirects=False
        )

    async def knows(self, url: str, request_id: str) -> bool:
        """Whether the replica at ``url`` has a request, asked over a connection of its own."""
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        connector = aiohttp.TCPConnector(force_close=True)
        path = f"{url}/fleet/requests/{quote(request_id, safe='')}"
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(path, headers=self._secret, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return False
                return msgspec.json.decode(await response.read(), type=_KnownRequest).known
        except (*LOST_ERRORS, msgspec.DecodeError):
            return False

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        """The session; made in the loop that uses it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=10
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
                read_bufsize=READ_BUFFER_BYTES,
            )
        return self._session


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Seconds of ``Retry-After``, 1 to 3600; None without one that is a number."""
    text = headers.get("retry-after", "")
    return min(max(int(text), 1), 3600) if text.isdecimal() and len(text) < 9 else None


def error_code(body: bytes) -> str | None:
    """``error.code`` of an answer in OpenAI's shape, None where there is none."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    error = decoded.get("error") if isinstance(decoded, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None
