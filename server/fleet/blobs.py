"""Archives of adapters by their sha256: what gateways bring, and what peers pull from here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...gateway.fleet.versions import SHA256
from ..adapters.files import StagedFile
from ..body import too_large
from ..errors import ApiError

MAX_TOTAL_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class Blob:
    """An archive that is stored; ``size`` in bytes."""

    sha256: str
    size: int


class BlobStore:
    """A directory of archives, each under its own digest, of ``max_total_bytes`` at most.

    Where room is needed the ones that are longest unused go, but for those of ``referenced`` and
    those that somebody holds. What was on its way when the process ended is dropped at start.
    """

    def __init__(
        self,
        directory: Path,
        referenced: Callable[[], Collection[str]],
        *,
        max_bytes: int,
        max_total_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        self._directory = directory
        self._referenced = referenced
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._num_incoming_bytes = 0
        directory.mkdir(mode=0o700, exist_ok=True)
        self._find()

    @property
    def num_bytes(self) -> int:
        """What is stored, and what is on its way."""
        return sum(self._sizes.values()) + self._num_incoming_bytes

    def get(self, sha256: str) -> Blob | None:
        """An archive that is here; counts as a use."""
        if sha256 not in self._sizes:
            return None
        self._sizes.move_to_end(sha256)
        return Blob(sha256, self._sizes[sha256])

    def path(self, blob: Blob) -> Path:
        """The file of an archive that is here."""
        return self._directory / blob.sha256

    async def add(self, chunks: AsyncIterator[bytes], expected: str | None = None) -> Blob:
        """Store what comes, hashed on its way to the disk.

        Raises ApiError 413 beyond what one archive may have, 507 where there is no room, and 400
        where it is not what was ``expected``; then nothing of it stays.
        """
        file = StagedFile(self._directory / f"incoming-{uuid.uuid4().hex}")
        digest = hashlib.sha256()
        try:
            async for chunk in chunks:
                self._make_room(file.num_bytes, len(chunk))
                self._num_incoming_bytes += len(chunk)
                digest.update(chunk)
                await file.write(chunk)
            await file.finish()
            sha256 = digest.hexdigest()
            if expected not in (None, sha256):
                raise ApiError("The archive is not the one that was asked for.", code="wrong_blob")
            return self._take_in(Blob(sha256, file.num_bytes), file.path)
        finally:
            self._num_incoming_bytes -= file.num_bytes
            file.close()
            file.path.unlink(missing_ok=True)

    async def add_file(self, path: Path) -> Blob:
        """Store a file's content; the file stays."""
        return await self.add(_chunks_of(path))

    @contextmanager
    def hold(self, sha256: str) -> Iterator[None]:
        """Keep an archive for as long as the context lasts."""
        self._held[sha256] += 1
        try:
            yield
        finally:
            self._held[sha256] -= 1
            if not self._held[sha256]:
                del self._held[sha256]

    def discard(self, sha256: str) -> None:
        """Remove an archive, unless it is in use or not there."""
        if sha256 in self._sizes and self._is_free(sha256, self._referenced()):
            self._remove(sha256)

    def check(self) -> None:
        """Assert that the directory holds what is counted, and no more than allowed."""
        files = [entry for entry in self._directory.iterdir() if entry.is_file()]
        stored = {file.name: file.stat().st_size for file in files if SHA256.fullmatch(file.name)}
        assert stored == dict(self._sizes), "the files are those that are known"
        assert self.num_bytes <= self._max_total_bytes

    def _find(self) -> None:
        found = []
        for entry in self._directory.iterdir():
            if SHA256.fullmatch(entry.name) and entry.is_file():
                stat = entry.stat()
                found.append((stat.st_mtime, entry.name, stat.st_size))
            elif not entry.is_dir():  # a directory is nothing of ours
                entry.unlink()
        for _, name, size in sorted(found):
            self._sizes[name] = size

    def _take_in(self, blob: Blob, file: Path) -> Blob:
        os.replace(file, self._directory / blob.sha256)
        self._sizes[blob.sha256] = blob.size
        self._sizes.move_to_end(blob.sha256)
        return blob

    def _make_room(self, num_before: int, num_more: int) -> None:
        if num_before + num_more > self._max_bytes:
            raise too_large("archive", self._max_bytes)
        missing = self.num_bytes + num_more - self._max_total_bytes
        if missing <= 0:
            return
        referenced = set(self._referenced())
        for sha256 in [name for name in self._sizes if self._is_free(name, referenced)]:
            missing -= self._sizes[sha256]
            self._remove(sha256)
            if missing <= 0:
                return
        raise ApiError(
            "There is no room for another archive here.",
            status=507,
            type="server_error",
            code="blobs_full",
        )

    def _is_free(self, sha256: str, referenced: Collection[str]) -> bool:
        return sha256 not in self._held and sha256 not in referenced

    def _remove(self, sha256: str) -> None:
        del self._sizes[sha256]
        with contextlib.suppress(FileNotFoundError):
            (self._directory / sha256).unlink()


async def _chunks_of(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, 1 << 20):
            yield chunk
    finally:
        file.close()
