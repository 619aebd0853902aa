"""The files that make up an adapter, by name; and one file that is written as its bytes come."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ParamSpec, TypeVar

from ...lora.errors import AdapterError
from ...lora.files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from ..text.text_files import TEXT_FILES

KEPT_PATTERNS = (CONFIG_FILE, "adapter_model*.safetensors", INDEX_FILE, *TEXT_FILES)
"""Shell patterns of the files that are taken from a source; all others are left where they are."""

CHUNK_BYTES = 1 << 20

_PICKLES = ("adapter_model*.bin", "pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

P = ParamSpec("P")
T = TypeVar("T")


def is_kept(name: str) -> bool:
    """Whether a file of that name, without its folders, belongs to an adapter."""
    return any(fnmatchcase(name, pattern) for pattern in KEPT_PATTERNS)


def refuse_pickle(name: str) -> None:
    """Raises AdapterError if ``name`` is that of a pickle."""
    last = name.rpartition("/")[2].lower()
    if any(fnmatchcase(last, pattern) for pattern in _PICKLES):
        raise AdapterError(
            name,
            "is a pickle, which can run any code when it is read and is never opened; leave it "
            f"out, and save the adapter as {WEIGHTS_FILE}",
        )


def check_plain(name: str) -> tuple[str, ...]:
    """The parts of a relative path; raises AdapterError for one that could lead elsewhere."""
    parts = name.removeprefix("./").removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts:
        raise AdapterError(_shown(name), "leads out of the archive; names must be relative")
    odd = not name.isprintable() or "\\" in name or ":" in name or len(name) > 1024
    if odd or "." in parts[1:] or ("" in parts and name != "./"):
        raise AdapterError(_shown(name), "is not a plain file name")
    return tuple(part for part in parts if part not in ("", "."))


@contextlib.contextmanager
def nothing_left(directory: Path) -> Iterator[Path]:
    """Makes ``directory``, and removes it with all in it if the block fails."""
    directory.mkdir()
    try:
        yield directory
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


async def in_thread(
    function: Callable[P, T], stop: threading.Event, /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run in a thread; when cancelled, set ``stop`` and wait until the thread has left.

    So that whoever cleans up after a cancelled call does it last.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        while not running.done():
            with contextlib.suppress(BaseException):
                await asyncio.shield(running)
        raise


class StagedFile:
    """A new file, written in threads a megabyte at a time so that the event loop never waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self._file = io.BufferedWriter(io.FileIO(path, "xb"))
        self._buffer = bytearray()

    async def write(self, data: bytes) -> None:
        """Take more; raises OSError."""
        self._buffer += data
        self.num_bytes += len(data)
        if len(self._buffer) >= CHUNK_BYTES:
            await self._flush()

    async def finish(self) -> None:
        """Write the rest and close; raises OSError."""
        await self._flush()
        self.close()

    def close(self) -> None:
        """Close, whatever is left to write."""
        self._buffer.clear()
        self._file.close()

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(self._file.write, data)


def _shown(name: str) -> str:
    """A stranger's file name, fit for a message."""
    return ascii(name[:100])[1:-1]
