"""A replica's endpoints for adapter versions, as one gateway calls them.

```
ReplicaRefused   an answer of 400 to 499: the same everywhere, most likely
ReplicaFailed    no answer, or one of 500 and more: another replica may do better
```
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import aiohttp
import msgspec

from ..errors import GatewayError
from ..fleet.headers import FLEET_SECRET
from ..fleet.versions import (
    BlobAnswer,
    BlobRemoval,
    PinTier,
    PutVersion,
    VersionRemoval,
    VersionReport,
    VersionReports,
)

CALL_SECONDS = 10.0
PUT_SECONDS = 900.0
"""Fetching, checking and formatting a large adapter take time; a replica has limits of its own."""
CONNECT_SECONDS = 2.0
MAX_ANSWER_BYTES = 16 << 20

T = TypeVar("T")


class ReplicaFailed(Exception):  # noqa: N818
    """A replica did not do what it was asked, and why is its own affair."""


class ReplicaRefused(ReplicaFailed):
    """A replica said no: its status and OpenAI's fields."""

    def __init__(self, status: int, message: str, param: str | None, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def as_answer(self) -> GatewayError:
        """The same to the gateway's client."""
        return GatewayError(self.status, self.message, param=self.param, code=self.code)


class _Detail(msgspec.Struct):
    message: str
    param: str | None = None
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Detail


class ReplicaClient:
    """Calls replicas with the fleet's secret. All calls raise ReplicaFailed or ReplicaRefused."""

    def __init__(self, session: aiohttp.ClientSession, secret: str) -> None:
        self._session = session
        self._headers = {FLEET_SECRET: secret}

    async def post_blob(
        self, url: str, chunks: AsyncIterator[bytes], content_type: str
    ) -> BlobAnswer:
        """Send an archive; whoever gives ``chunks`` bounds the time."""
        headers = {"content-type": content_type}
        return await self._call(
            BlobAnswer, "POST", f"{url}/fleet/blobs", None, data=chunks, headers=headers
        )

    async def put_version(
        self, url: str, put: PutVersion, seconds: float = PUT_SECONDS
    ) -> VersionReport:
        """Have a version at a replica."""
        body = msgspec.json.encode(put)
        headers = {"content-type": "application/json"}
        return await self._call(
            VersionReport, "POST", f"{url}/fleet/versions", seconds, data=body, headers=headers
        )

    async def delete_version(
        self, url: str, version_id: str, *, wait: float = 0, min_age: float = 0
    ) -> VersionRemoval:
        """Have a replica forget a version."""
        path = f"{url}/fleet/versions/{version_id}?wait={wait:g}&min_age={min_age:g}"
        return await self._call(VersionRemoval, "DELETE", path, wait + CALL_SECONDS)

    async def list_versions(self, url: str) -> list[VersionReport]:
        """All versions of a replica."""
        path = f"{url}/fleet/versions"
        return (await self._call(VersionReports, "GET", path, CALL_SECONDS)).versions

    async def get_version(self, url: str, version_id: str) -> VersionReport:
        """One version of a replica."""
        path = f"{url}/fleet/versions/{version_id}"
        return await self._call(VersionReport, "GET", path, CALL_SECONDS)

    async def drop_blob(self, url: str, sha256: str) -> None:
        """Have a replica drop an archive that nothing was made of; it is no matter if it can't."""
        with contextlib.suppress(ReplicaFailed):
            path = f"{url}/fleet/blobs/{sha256}"
            await self._call(BlobRemoval, "DELETE", path, CALL_SECONDS)

    async def turn(
        self, url: str, version_id: str, verb: str, tier: PinTier, seconds: float = 120.0
    ) -> VersionReport:
        """``load``, ``evict``, ``pin`` or ``unpin``."""
        path = f"{url}/fleet/versions/{version_id}/{verb}?tier={tier}"
        return await self._call(VersionReport, "POST", path, seconds)

    async def _call(
        self, answer: type[T], method: str, url: str, seconds: float | None, **options: Any
    ) -> T:
        headers = {**self._headers, **options.pop("headers", {})}
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method, url, headers=headers, timeout=timeout, allow_redirects=False, **options
            ) as response:
                raw = await response.content.read(MAX_ANSWER_BYTES)
                while not response.content.at_eof() and len(raw) < MAX_ANSWER_BYTES:
                    raw += await response.content.read(MAX_ANSWER_BYTES - len(raw))
                return _read(answer, response.status, raw)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:  # noqa: UP041
            raise ReplicaFailed(str(error) or type(error).__name__) from error


def _read(answer: type[T], status: int, raw: bytes) -> T:
    try:
        if 200 <= status < 300:
            return msgspec.json.decode(raw, type=answer)
        error = msgspec.json.decode(raw, type=_ErrorBody).error
    except msgspec.DecodeError as problem:
        raise ReplicaFailed(f"status {status}, and a body that is no good") from problem
    if not 400 <= status < 500 or status in (401, 403):
        raise ReplicaFailed(error.message)
    raise ReplicaRefused(status, error.message, error.param, error.code)
