"""Archives from strangers: an adapter's files out of a zip or a tar, and nothing else."""

from __future__ import annotations

import stat
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import IO, cast

from ...lora.errors import AdapterError
from ...lora.files import CONFIG_FILE
from .archive_stream import Decompressed, Metered, SmallReads, decompressor_for
from .files import CHUNK_BYTES, check_plain, is_kept, nothing_left, refuse_pickle

MAX_FILES = 1000

# Long names and times come in headers of their own, of which a few may precede a file.
_MAX_HEADER_BYTES = 1 << 20
_TAR_BUFFER_BYTES = 1 << 18
_HEAD_BYTES = 262


def unpack(
    archive: Path,
    target: Path,
    max_bytes: int,
    max_files: int = MAX_FILES,
    stop: threading.Event | None = None,
) -> Path:
    """Write the adapter in ``archive`` to the new directory ``target``, flat; returns ``target``.

    A zip or a tar (plain, gzip, bzip2, xz), told by its content. The adapter lies at the top or in
    one folder there; other files are skipped. Raises AdapterError, with nothing left behind, for
    links, devices, pickles, names that are not plain or come twice, more than ``max_files`` names,
    more than ``max_bytes`` as they come out. ``stop`` ends it early.
    """
    stop = stop or threading.Event()
    with nothing_left(target):
        try:
            _unpack(archive, _Target(target, max_bytes, max_files, stop))
        except AdapterError:
            raise
        except OSError as error:
            if error.errno is None:
                raise _broken(error) from error
            raise AdapterError("archive", f"can't be stored: {error.strerror}") from error
        except Exception as error:
            # Whatever the readers make of a stranger's bytes.
            raise _broken(error) from error
    return target


class _Target:
    """Where the adapter's files go, and what has come so far."""

    def __init__(
        self, directory: Path, max_bytes: int, max_files: int, stop: threading.Event
    ) -> None:
        self.max_bytes = max_bytes
        self.stop = stop
        self._directory = directory
        self._max_files = max_files
        self._num_bytes = 0
        self._names: set[tuple[str, ...]] = set()
        self._num_names = 0
        self._folder: tuple[str, ...] | None = None

    def admit(self, name: str, is_folder: bool) -> tuple[str, ...] | None:
        """Check a member's name; its parts if it is a file to take, None to pass it by."""
        self._num_names += 1
        if self._num_names > self._max_files:
            raise AdapterError("archive", f"holds more than {self._max_files} files")
        parts = check_plain(name)
        if is_folder:
            return None
        if not parts or parts in self._names:
            raise AdapterError(name, "is in the archive twice")
        self._names.add(parts)
        refuse_pickle(name)
        return parts if len(parts) <= 2 and is_kept(parts[-1]) else None

    def take(self, parts: tuple[str, ...], size: int, source: IO[bytes]) -> None:
        """Write one file of ``size`` bytes, as its header says."""
        folder, name = parts[:-1], parts[-1]
        if self._folder not in (None, folder):
            raise AdapterError("archive", "holds an adapter's files in more than one folder")
        self._folder = folder
        self._check_room(size)
        with (self._directory / name).open("xb") as file:
            while chunk := source.read(CHUNK_BYTES):
                self._check_room(len(chunk))
                self._num_bytes += len(chunk)
                file.write(chunk)

    def check(self) -> None:
        """Raises AdapterError unless an adapter has come."""
        if not (self._directory / CONFIG_FILE).exists():
            raise AdapterError(
                CONFIG_FILE,
                "is missing: it must lie at the top of the archive or in a folder there",
            )

    def _check_room(self, num_bytes: int) -> None:
        if self.stop.is_set():
            raise InterruptedError("unpacking was stopped")
        if self._num_bytes + num_bytes > self.max_bytes:
            raise AdapterError("archive", f"unpacks to more than {self.max_bytes} bytes")


def _unpack(archive: Path, target: _Target) -> None:
    with archive.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise AdapterError("archive", "is empty")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        _unpack_zip(archive, target)
    else:
        _unpack_tar(archive, head, target)
    target.check()


def _unpack_zip(archive: Path, target: _Target) -> None:
    with (
        archive.open("rb", buffering=0) as raw,
        SmallReads(raw) as file,
        zipfile.ZipFile(file) as members,
    ):
        for member in members.infolist():
            name = member.filename
            if "\0" in member.orig_filename:
                raise AdapterError("archive", "has a file whose name holds a zero byte")
            parts = target.admit(name, member.is_dir())
            _check_mode(name, member.external_attr >> 16)
            if parts is None:
                continue
            if member.flag_bits & 1:
                raise AdapterError(name, "is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise AdapterError(name, "must be stored or deflated in a zip")
            with members.open(member) as source:
                target.take(parts, member.file_size, source)


def _check_mode(name: str, mode: int) -> None:
    """Refuse what a zip made on Unix says is no file; 0 is from elsewhere."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise AdapterError(name, "is a link; an archive must hold plain files")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise AdapterError(name, "is a device or pipe; an archive must hold plain files")


def _unpack_tar(archive: Path, head: bytes, target: _Target) -> None:
    make = decompressor_for(head)
    if make is None and head[257:262] != b"ustar":
        raise AdapterError("archive", "is neither a zip nor a tar (plain, gzip, bzip2 or xz)")
    with archive.open("rb") as file:
        content = Decompressed(file, make) if make is not None else file
        stream = Metered(content, target.max_bytes, target.stop)
        stream.allow(_MAX_HEADER_BYTES)
        # Read forward only, by nothing but read(): going back would decompress it all again.
        opened = cast("IO[bytes]", stream)
        with tarfile.open(mode="r|", fileobj=opened, bufsize=_TAR_BUFFER_BYTES) as members:
            for member in members:
                parts = target.admit(member.name, member.isdir())
                _check_type(member)
                # What is left over when its data is read or passed by is for the next headers.
                stream.allow(_MAX_HEADER_BYTES + (member.size if member.isreg() else 0))
                source = members.extractfile(member) if parts is not None else None
                if parts is not None and source is not None:
                    target.take(parts, member.size, source)


def _check_type(member: tarfile.TarInfo) -> None:
    if member.issym() or member.islnk():
        raise AdapterError(member.name, "is a link; an archive must hold plain files")
    if member.issparse():
        raise AdapterError(member.name, "is a sparse file; an archive must hold plain files")
    if not (member.isreg() or member.isdir()):
        raise AdapterError(member.name, "is a device or pipe; an archive must hold plain files")


def _broken(error: Exception) -> AdapterError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return AdapterError("archive", f"can't be read: {reason[:200]}")
