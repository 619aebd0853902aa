"""From a request, a peer or a source to an archive in the store of blobs."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fastapi import Request

from ...gateway.fleet.headers import FLEET_SECRET
from ...lora.errors import AdapterError
from ..adapters.fetch import fetch
from ..adapters.files import is_kept
from ..adapters.sources import AdapterSource, SourcePolicy, parse_source, shown_location
from ..adapters.upload import ARCHIVE_TYPES, IDLE_SECONDS, body_chunks, receive_upload, wrong_type
from ..body import too_slow
from ..errors import ApiError
from ..multipart import MULTIPART
from .blobs import Blob, BlobStore

Workroom = Callable[[], AbstractContextManager[Path]]

CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class BlobIntake:
    """Brings archives in, within the policy's bytes and seconds.

    ``secret`` is the fleet's, shown to peers; ``workroom`` gives an empty directory.
    """

    blobs: BlobStore
    policy: SourcePolicy
    workroom: Workroom
    secret: str = field(repr=False)

    async def receive(self, request: Request) -> tuple[Blob, dict[str, str]]:
        """What a request brings, as an upload does, and the other fields of its form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == MULTIPART:
            with self.workroom() as work:
                upload = await receive_upload(request, self.policy, work)
                return await self._pack(upload.path, work), upload.fields
        if kind not in ARCHIVE_TYPES:
            raise wrong_type(kind)
        try:
            async with asyncio.timeout(self.policy.timeout):
                chunks = body_chunks(request, self.policy.max_bytes, IDLE_SECONDS)
                return await self.blobs.add(chunks), {}
        except TimeoutError:
            raise too_slow(f"The upload was not here within {self.policy.timeout:g} s.") from None

    async def fetch(self, text: str) -> tuple[Blob, AdapterSource]:
        """What an admin's source leads to, as one archive; raises AdapterError."""
        source = await asyncio.to_thread(parse_source, text, self.policy)
        with self.workroom() as work:
            directory = await fetch(source, self.policy, work)
            blob = await self._pack(directory, work)
        return blob, AdapterSource(source.kind, shown_location(source.location))

    async def pull(self, peers: Sequence[str], path: str, expected: str | None) -> Blob | None:
        """What the first peer that has it gives at ``path``; None if none does."""
        timeout = httpx.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS)
        headers = {FLEET_SECRET: self.secret, "accept-encoding": "identity"}
        async with httpx.AsyncClient(timeout=timeout, headers=headers, trust_env=False) as client:
            for peer in peers:
                try:
                    async with asyncio.timeout(self.policy.timeout):
                        return await self._pull(client, f"{peer.rstrip('/')}{path}", expected)
                except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
                    continue
                except ApiError as error:
                    if error.code != "wrong_blob":
                        raise
        return None

    async def _pull(self, client: httpx.AsyncClient, url: str, expected: str | None) -> Blob:
        async with client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise httpx.HTTPError(f"{response.status_code}")
            return await self.blobs.add(response.aiter_raw(), expected)

    async def _pack(self, directory: Path, work: Path) -> Blob:
        archive = work / "packed.tar"
        try:
            await asyncio.to_thread(pack, directory, archive)
        except OSError as error:
            raise AdapterError("source", f"can't be read: {error.strerror}") from error
        return await self.blobs.add_file(archive)


def pack(directory: Path, archive: Path) -> None:
    """Write a directory's adapter files as a tar; the same files make the same bytes."""
    with tarfile.open(archive, "x", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted(directory.iterdir()):
            if not (is_kept(file.name) and file.is_file()):
                continue
            with file.open("rb") as stream:
                info = tarfile.TarInfo(file.name)
                info.size = file.stat().st_size
                tar.addfile(info, stream)
