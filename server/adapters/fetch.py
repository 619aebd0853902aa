"""From a source to a directory that holds its adapter, within the policy's bytes and seconds."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import httpx

from ...lora.errors import AdapterError
from .archive import unpack
from .files import KEPT_PATTERNS, in_thread, nothing_left
from .http import IDLE_SECONDS, HttpSource
from .hub import NotFoundError, find_cached, is_offline
from .hub_download import HubDownload, download_snapshot
from .sources import (
    AdapterSource,
    OnProgress,
    SourcePolicy,
    check_directory,
    parse_hub_id,
    parse_url,
    shown_url,
)

logger = logging.getLogger(__name__)


def _tell_nobody(num_bytes: int, total: int | None) -> None:
    """No progress is asked for."""


async def fetch(
    source: AdapterSource,
    policy: SourcePolicy,
    staging: Path,
    on_progress: OnProgress = _tell_nobody,
) -> Path:
    """The directory to read ``source`` from; raises AdapterError, with nothing left behind.

    Held against the policy again. A directory, and a snapshot in the hub's cache, stay where they
    are: never remove what is returned. All else is new below ``staging``, the caller's to remove.
    """
    shown = shown_url(source.location)
    try:
        async with asyncio.timeout(policy.timeout):
            match source.kind:
                case "directory":
                    return await asyncio.to_thread(_check_directory, source.location, policy)
                case "http":
                    return await _fetch_http(source, policy, staging, on_progress)
                case "hub":
                    return await _fetch_hub(source, policy)
                case "blob":
                    return await _unpack_blob(source.location, policy, staging / "adapter")
                case "upload":
                    raise AdapterError("source", "was uploaded, and must be uploaded again")
    except TimeoutError:
        raise AdapterError("source", f"{shown} was not here within {policy.timeout:g} s") from None
    except OSError as error:
        logger.warning("%s can't be fetched", shown, exc_info=error)
        raise AdapterError("source", f"{shown} can't be stored: {error.strerror}") from error


def _check_directory(path: str, policy: SourcePolicy) -> Path:
    """The directory, if it and all that its links lead to lie under the roots."""
    directory = check_directory(path, policy)
    roots = [Path(root).resolve() for root in policy.roots]
    for entry in directory.iterdir():
        if entry.is_symlink() and not any(entry.resolve().is_relative_to(root) for root in roots):
            raise AdapterError(entry.name, "is a link that leads out of the allowed directories")
    return directory


async def _fetch_http(
    source: AdapterSource, policy: SourcePolicy, staging: Path, on_progress: OnProgress
) -> Path:
    url = parse_url(source.location, policy)
    target = staging / "adapter"
    async with httpx.AsyncClient(timeout=IDLE_SECONDS) as client:
        http = HttpSource(client, policy, on_progress)
        if url.path.endswith("/"):
            with nothing_left(target):
                await http.fetch_directory(url, target)
            return target
        archive = staging / "archive"
        try:
            await http.fetch_file(url, archive)
            stop = threading.Event()
            return await in_thread(unpack, stop, archive, target, policy.max_bytes, stop=stop)
        finally:
            archive.unlink(missing_ok=True)


async def _unpack_blob(sha256: str, policy: SourcePolicy, target: Path) -> Path:
    archive = None if policy.blobs is None else Path(policy.blobs, sha256)
    if archive is None or not await asyncio.to_thread(archive.is_file):
        raise AdapterError("source", "its archive is gone, and has to come again")
    stop = threading.Event()
    return await in_thread(unpack, stop, archive, target, policy.max_bytes, stop=stop)


async def _fetch_hub(source: AdapterSource, policy: SourcePolicy) -> Path:
    hub_id = parse_hub_id(source.location, policy)
    try:
        if is_offline():
            found = await asyncio.to_thread(
                find_cached, hub_id.name, hub_id.revision, KEPT_PATTERNS
            )
        else:
            found = await download_snapshot(
                HubDownload(hub_id.name, hub_id.revision, KEPT_PATTERNS, policy.max_bytes)
            )
    except NotFoundError as error:
        raise AdapterError("source", str(error)) from None
    return Path(found)
