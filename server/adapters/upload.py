"""An adapter in a request's body: an archive, or its files one by one, straight to disk."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from starlette.requests import ClientDisconnect

from ...lora.errors import AdapterError
from ...lora.files import CONFIG_FILE
from ..body import too_large, too_slow
from ..errors import ApiError, bad_field
from ..multipart import MULTIPART, MultipartReader, PartEnd, PartEvent, PartStart
from .archive import MAX_FILES, unpack
from .files import StagedFile, check_plain, in_thread, is_kept, nothing_left, refuse_pickle
from .sources import SourcePolicy

ARCHIVE_TYPES = (
    "application/zip",
    "application/x-tar",
    "application/gzip",
    "application/x-gzip",
    "application/x-bzip2",
    "application/x-xz",
    "application/octet-stream",
)
IDLE_SECONDS = 30.0
"""The longest between two pieces of a body."""

MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UploadedAdapter:
    """The directory with the adapter's files, and the form's other fields."""

    path: Path
    fields: dict[str, str]


async def receive_upload(
    request: Request, policy: SourcePolicy, staging: Path, idle_timeout: float = IDLE_SECONDS
) -> UploadedAdapter:
    """Write what a request brings below ``staging``, unpacked; raises with nothing left there.

    The body is an archive (zip, tar) as it is, or multipart/form-data with one file ``archive`` or
    several ``files``, and small text fields. Raises ApiError 400, 408, 413, 415, and AdapterError
    for what is in it. ``staging`` is the caller's to remove.
    """
    body = body_chunks(request, policy.max_bytes, idle_timeout)
    archive, target = staging / "archive", staging / "adapter"
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(policy.timeout):
            if kind in ARCHIVE_TYPES:
                await _store(body, archive)
                return UploadedAdapter(await _unpack(archive, target, policy.max_bytes), {})
            if kind != MULTIPART:
                raise wrong_type(kind)
            reader = MultipartReader(content_type)
            return await _receive_form(body, reader, archive, target, policy.max_bytes)
    except TimeoutError:
        raise too_slow(f"The upload was not here within {policy.timeout:g} s.") from None
    except OSError as error:
        logger.warning("an upload can't be stored", exc_info=error)
        raise AdapterError("archive", f"can't be stored: {error.strerror}") from error
    finally:
        archive.unlink(missing_ok=True)


async def _receive_form(
    body: AsyncIterator[bytes], reader: MultipartReader, archive: Path, target: Path, max_bytes: int
) -> UploadedAdapter:
    with nothing_left(target):
        form = _Form(archive, target)
        try:
            async for chunk in body:
                for event in reader.feed(chunk):
                    await form.take(event)
        finally:
            form.close()
        reader.finish()
        form.check()
        if form.has_archive:
            target.rmdir()
            await _unpack(archive, target, max_bytes)
        return UploadedAdapter(target, form.fields)


class _Form:
    """The parts of a form as they come: the archive or the files to disk, the fields to memory."""

    def __init__(self, archive: Path, target: Path) -> None:
        self.fields: dict[str, str] = {}
        self.has_archive = False
        self._archive = archive
        self._target = target
        self._file_names: set[str] = set()
        self._name = ""
        self._file: StagedFile | None = None
        self._text: bytearray | None = None

    async def take(self, event: PartEvent) -> None:
        """One event of the form; raises ApiError 400 that names the field, or AdapterError."""
        match event:
            case PartStart(name, None):
                self._begin_field(name)
            case PartStart(name, file_name):
                self._begin_file(name, file_name or "")
            case PartEnd():
                await self._end()
            case _:
                await self._add(event)

    def check(self) -> None:
        """Raises ApiError unless the form had an archive or an adapter's files."""
        if self.has_archive and self._file_names:
            raise bad_field("files", "can't come beside an archive")
        if not self.has_archive and not self._file_names:
            raise bad_field("archive", "is required: one file, or the adapter's files as 'files'")
        if not self.has_archive and CONFIG_FILE not in self._file_names:
            raise bad_field("files", f"has no {CONFIG_FILE}")

    def close(self) -> None:
        """Let go of a file that is only half here."""
        if self._file is not None:
            self._file.close()

    def _begin_field(self, name: str) -> None:
        if name in ("archive", "files"):
            raise bad_field(name, "must be a file, with a filename")
        if name in self.fields:
            raise bad_field(name[:100], "is there twice")
        if len(self.fields) == MAX_FIELDS:
            raise ApiError(f"The form has more than {MAX_FIELDS} fields.")
        self._name, self._text = name, bytearray()

    def _begin_file(self, name: str, file_name: str) -> None:
        if name == "archive":
            if self.has_archive:
                raise bad_field("archive", "is there twice")
            self.has_archive = True
            self._file = StagedFile(self._archive)
            return
        if name != "files":
            raise bad_field(name[:100], "can't be a file; files are 'archive' or 'files'")
        if not file_name:
            raise bad_field("files", "must each have a filename")
        if len(check_plain(file_name)) != 1 or "/" in file_name:
            raise bad_field("files", f"{file_name[:100]!r} must be a name without a folder")
        refuse_pickle(file_name)
        if file_name in self._file_names:
            raise bad_field("files", f"{file_name[:100]!r} is there twice")
        self._file_names.add(file_name)
        if len(self._file_names) > MAX_FILES:
            raise bad_field("files", f"are more than {MAX_FILES}")
        if is_kept(file_name):
            self._file = StagedFile(self._target / file_name)

    async def _add(self, data: bytes) -> None:
        if self._file is not None:
            await self._file.write(data)
        elif self._text is not None:
            self._text += data
            if len(self._text) > MAX_FIELD_BYTES:
                raise bad_field(self._name[:100], f"is longer than {MAX_FIELD_BYTES} bytes")

    async def _end(self) -> None:
        if self._file is not None:
            await self._file.finish()
        elif self._text is not None:
            self.fields[self._name] = self._text.decode("utf-8", errors="replace")
        self._file = self._text = None


async def body_chunks(
    request: Request, max_bytes: int, idle_timeout: float
) -> AsyncIterator[bytes]:
    """The body's pieces; raises ApiError 413, 408, and 400 when the client leaves."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large("upload", max_bytes)
    num_bytes = 0
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_timeout):
                chunk = await anext(pieces, None)
        except TimeoutError:
            raise too_slow(f"Nothing of the body came for {idle_timeout:g} s.") from None
        except ClientDisconnect as error:
            raise ApiError("The client left before its upload was complete.") from error
        if chunk is None:
            return
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large("upload", max_bytes)
        yield chunk


async def _store(body: AsyncIterator[bytes], path: Path) -> None:
    file = StagedFile(path)
    try:
        async for chunk in body:
            await file.write(chunk)
        await file.finish()
    finally:
        file.close()


async def _unpack(archive: Path, target: Path, max_bytes: int) -> Path:
    stop = threading.Event()
    return await in_thread(unpack, stop, archive, target, max_bytes, stop=stop)


def wrong_type(kind: str) -> ApiError:
    """415: what an upload may be."""
    return ApiError(
        f"The content-type {kind[:100]!r} is not taken here; it may be {MULTIPART}, "
        f"{', '.join(ARCHIVE_TYPES)}.",
        status=415,
        code="unsupported_content_type",
    )
