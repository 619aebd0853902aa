"""Streams to read an archive by that never give more, or take more memory, than is allowed."""

from __future__ import annotations

import bz2
import io
import lzma
import threading
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from ...lora.errors import AdapterError

_INPUT_BYTES = 1 << 16
# Of xz's presets the highest, -9, takes 65 MB; a header can ask for 4 GB.
_MAX_XZ_MEMORY = 128 << 20
# Beside its files a tar holds headers, padding and an end.
_OVERHEAD_BYTES = 2 << 20
# Writers that begin a stream anew, as those of many threads do, put megabytes into each.
_MAX_EMPTY_STREAMS = 16


class Decompressor(Protocol):
    """One compressed stream, as ``bz2`` and ``lzma`` have it."""

    @property
    def eof(self) -> bool:
        """Whether its end was reached."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before more is put in."""

    @property
    def unused_data(self) -> bytes:
        """What follows its end."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Put ``data`` in, take at most ``max_length`` bytes out."""


class _Gzip:
    """zlib's decompressor for gzip with the same interface."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


def decompressor_for(head: bytes) -> Callable[[], Decompressor] | None:
    """The kind of compression that a file beginning with ``head`` has; None for none."""
    if head.startswith(b"\x1f\x8b"):
        return _Gzip
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\0"):
        return lambda: lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY)
    return None


class Decompressed:
    """The content of a compressed file, read forward; raises EOFError where it is cut off.

    The standard library's readers would do, but for what a header decides there: how much memory
    xz takes, how long gzip looks for the end of a name, how many empty streams follow each other.
    """

    def __init__(self, file: BinaryIO, make: Callable[[], Decompressor]) -> None:
        self._file = file
        self._make = make
        self._stream = make()
        self._is_empty = True
        self._num_empty = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        data = b""
        while True:
            if self._stream.eof:
                data = self._stream.unused_data or self._file.read(_INPUT_BYTES)
                if not data:
                    return b""
                self._next_stream()
            elif self._stream.needs_input:
                data = self._file.read(_INPUT_BYTES)
                if not data:
                    raise EOFError("its compressed data is cut off")
            out = self._stream.decompress(data, size)
            if out:
                self._is_empty = False
                return out
            data = b""

    def _next_stream(self) -> None:
        self._num_empty += self._is_empty
        if self._num_empty > _MAX_EMPTY_STREAMS:
            raise AdapterError("archive", "holds too many empty compressed streams")
        self._stream, self._is_empty = self._make(), True


class Metered:
    """A stream that raises AdapterError once more comes than ``max_bytes`` of files, or than is
    allowed.

    ``allow`` says how much may be read until it is called again: what a header announces is
    believed for no more than that.
    """

    def __init__(
        self, file: BinaryIO | Decompressed, max_bytes: int, stop: threading.Event
    ) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._left = max_bytes + _OVERHEAD_BYTES
        self._allowed = 0
        self._stop = stop

    def allow(self, num_bytes: int) -> None:
        """Let so many more bytes be read."""
        self._allowed = num_bytes

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        if self._stop.is_set():
            raise InterruptedError("unpacking was stopped")
        data = self._file.read(size)
        self._left -= len(data)
        self._allowed -= len(data)
        if self._left < 0:
            raise AdapterError("archive", f"unpacks to more than {self._max_bytes} bytes")
        if self._allowed < 0:
            raise AdapterError("archive", "has a header that is too long")
        return data


class SmallReads(io.BufferedReader):
    """A file that refuses one large read: a zip's directory is read in one."""

    max_bytes = 1 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes; raises AdapterError where those are more than ``max_bytes``."""
        too_many = self.max_bytes + 1
        data = super().read(too_many if size is None or size < 0 else min(size, too_many))
        if len(data) > self.max_bytes:
            raise AdapterError("archive", "lists too many files")
        return data
