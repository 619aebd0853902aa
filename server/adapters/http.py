"""Adapters over HTTP: an archive, or the files of a directory, as much as the policy lets in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from ...lora.errors import AdapterError
from ...lora.files import CONFIG_FILE, INDEX_FILE, MAX_SHARDS, WEIGHTS_FILE, weight_map
from ..text.text_files import TEXT_FILES
from .files import StagedFile, is_kept
from .sources import OnProgress, SourcePolicy, parse_url, shown_url

MAX_REDIRECTS = 5
IDLE_SECONDS = 30.0
"""For a connection, and between two pieces of an answer."""

# What comes encoded could unpack to any size; a compressed archive is unpacked with care later.
_HEADERS = {"accept-encoding": "identity"}


class NotThereError(AdapterError):
    """404 or 410 for a file."""


class HttpSource:
    """One source while it is fetched; all its files together hold to the policy's ``max_bytes``."""

    def __init__(
        self, client: httpx.AsyncClient, policy: SourcePolicy, on_progress: OnProgress
    ) -> None:
        self._client = client
        self._policy = policy
        self._on_progress = on_progress
        self._num_bytes = 0

    async def fetch_file(self, url: httpx.URL, path: Path) -> None:
        """Write what ``url`` answers to the new file ``path``; raises AdapterError."""
        try:
            async with self._get(url) as response:
                await self._store(response, path)
        except httpx.TimeoutException:
            raise _fault(url, f"gave nothing for {IDLE_SECONDS:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _fault(url, _first_line(error)) from error

    async def fetch_directory(self, url: httpx.URL, target: Path) -> None:
        """Write the adapter's files below ``url``, which ends in a slash, to ``target``."""
        await self.fetch_file(_below(url, CONFIG_FILE), target / CONFIG_FILE)
        try:
            await self.fetch_file(_below(url, WEIGHTS_FILE), target / WEIGHTS_FILE)
        except NotThereError:
            await self._fetch_shards(url, target)
        for name in TEXT_FILES:
            try:
                await self.fetch_file(_below(url, name), target / name)
            except NotThereError:
                continue

    async def _fetch_shards(self, url: httpx.URL, target: Path) -> None:
        try:
            await self.fetch_file(_below(url, INDEX_FILE), target / INDEX_FILE)
        except NotThereError:
            raise _fault(url, f"has neither {WEIGHTS_FILE} nor {INDEX_FILE}") from None
        for name in await asyncio.to_thread(_shards, target):
            await self.fetch_file(_below(url, name), target / name)

    @asynccontextmanager
    async def _get(self, url: httpx.URL) -> AsyncIterator[httpx.Response]:
        """The answer, after redirects that the policy allows one by one."""
        request = self._client.build_request("GET", url, headers=_HEADERS)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._client.send(request, stream=True)
            try:
                if response.next_request is None:
                    _check_status(url, response)
                    yield response
                    return
                request = response.next_request
                parse_url(request.url.copy_with(fragment=None), self._policy)
            finally:
                await response.aclose()
        raise _fault(url, f"redirects more than {MAX_REDIRECTS} times")

    async def _store(self, response: httpx.Response, path: Path) -> None:
        announced = _content_length(response)
        self._check_room(announced or 0)
        file = StagedFile(path)
        try:
            async for chunk in response.aiter_raw():
                self._check_room(len(chunk))
                self._num_bytes += len(chunk)
                await file.write(chunk)
                self._on_progress(file.num_bytes, announced)
            await file.finish()
        finally:
            file.close()

    def _check_room(self, num_bytes: int) -> None:
        if self._num_bytes + num_bytes > self._policy.max_bytes:
            raise AdapterError(
                "source", f"is larger than {self._policy.max_bytes} bytes, the most that is fetched"
            )


def _shards(directory: Path) -> list[str]:
    """The weight files that an index names; raises AdapterError."""
    names = sorted(set(weight_map(directory).values()))
    other = next((name for name in names if not is_kept(name)), None)
    if other is not None:
        raise AdapterError(INDEX_FILE, f"names {other!r}, which is no adapter_model*.safetensors")
    if len(names) > MAX_SHARDS:
        raise AdapterError(INDEX_FILE, f"names {len(names)} shards, at most {MAX_SHARDS} are read")
    return names


def _below(directory: httpx.URL, name: str) -> httpx.URL:
    """A file's URL, with the directory's query, where a signature would be."""
    return directory.join(name).copy_with(query=directory.query or None)


def _check_status(url: httpx.URL, response: httpx.Response) -> None:
    status = response.status_code
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise NotThereError("source", f"{shown_url(url)} answers {status}: it is not there")
    if status != httpx.codes.OK:
        raise _fault(url, f"answers {status} {response.reason_phrase}".rstrip())
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise _fault(url, f"comes with content-encoding {encoding[:50]!r}, unasked")


def _content_length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text[:20]) if text.isdecimal() else None


def _fault(url: httpx.URL, message: str) -> AdapterError:
    return AdapterError("source", f"{shown_url(url)} {message}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
