"""``store.json`` in the state directory: the copy that a gateway starts from.

It holds digests of keys and no keys. It is replaced in one step and readable by its owner alone.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec

from .documents import KINDS, Document, StoreError, Tombstone
from .local_copy import LocalCopy

FILE = "store.json"
FORMAT = 1

_Kind = Annotated[str, msgspec.Meta(pattern=f"^(?:{'|'.join(KINDS)})$")]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Revision = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document; without ``data`` a tombstone."""

    kind: _Kind
    name: _Text
    revision: _Revision
    data: msgspec.Raw = msgspec.Raw(b"")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    fleet: str
    generation: str
    position: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,16}-[0-9]{1,20}$")]
    entries: list[_Line]


class SnapshotFile:
    """The file of one gateway; ``close`` lets another one have the directory."""

    def __init__(self, directory: Path, fleet: str) -> None:
        """Take the directory, made if need be; raises StoreError."""
        self.path = directory / FILE
        self._fleet = fleet
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "store.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"state directory {directory}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise StoreError(f"state directory {directory}: another gateway uses it") from error
        for left in directory.glob(f"{FILE}.*"):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def read(self) -> LocalCopy | None:
        """The copy; None where there is no file. Raises StoreError for one that is no good."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error.strerror or error}") from error
        try:
            file = msgspec.json.decode(raw, type=_File)
            return self._copy(file)
        except ValueError as error:  # a msgspec error is a ValueError
            raise StoreError(f"{self.path} is no good: {' '.join(str(error).split())}") from None

    def _copy(self, file: _File) -> LocalCopy:
        if file.format != FORMAT:
            raise ValueError(f"is of format {file.format}; this gateway reads format {FORMAT}")
        if file.fleet != self._fleet:
            raise ValueError(f"is of fleet {file.fleet!r} and not of {self._fleet!r}")
        copy = LocalCopy(file.generation, file.position)
        for line in file.entries:
            data = bytes(line.data)
            known = (line.kind, line.name, line.revision)
            copy.apply([Document(*known, data) if data else Tombstone(*known)])
        return copy

    def encode(self, copy: LocalCopy) -> bytes:
        """What ``write`` is to write; quick, for the event loop's thread."""
        lines = [
            _Line(entry.kind, entry.name, entry.revision, msgspec.Raw(entry.data))
            if isinstance(entry, Document)
            else {"kind": entry.kind, "name": entry.name, "revision": entry.revision}
            for entry in copy.entries()
        ]
        return msgspec.json.encode(
            {
                "format": FORMAT,
                "fleet": self._fleet,
                "generation": copy.generation,
                "position": copy.position,
                "entries": lines,
            }
        )

    def write(self, raw: bytes) -> None:
        """Replace the file in one step; raises StoreError, with the old one still in place."""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f"{FILE}.", dir=self.path.parent)
            try:
                with open(descriptor, "wb") as stream:
                    stream.write(raw)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, self.path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError(f"{self.path} can't be written: {error.strerror or error}") from error

    def set_aside(self) -> Path:
        """Keep a file that is no good under another name."""
        other = self.path.with_suffix(".bad")
        os.replace(self.path, other)
        return other
