"""The state directory: the registry, the formatted files and what belongs to them.

    registry.json              names, versions, pins, aliases
    adapters/{digest}.adapter  formatted files, which the engine reads
    texts/{text digest}/       tokenizer and template files of adapters that ship them
    uploads/{digest}/          what was uploaded, to format it again for another base
    blobs/{sha256}             archives that a fleet's gateways brought; see server/fleet/blobs.py
    work/                      what puts in progress write; emptied at start
    lock                       held by the one server that uses the directory

At any moment the process may be killed: ``registry.json`` is replaced in one step, and only by a
registry whose files are all there and written out. What it does not name is dropped at start.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from ...engine.adapter_format import formatted_path
from ...lora.errors import BranchlineError
from ...lora.names import check_name
from ..aliases import check_targets
from .registry import AdapterRecord, AliasRecord, Registry

logger = logging.getLogger(__name__)

FORMAT = 1
REGISTRY = "registry.json"

_HexDigest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class StateError(BranchlineError):
    """The state directory can't be used; the message names it or the file at fault."""


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """``registry.json``."""

    format: int
    adapters: dict[str, AdapterRecord]
    aliases: dict[str, AliasRecord]


class StateDirectory:
    """One server's state. ``keeps_uploads``: it outlives this process. ``close`` lets go of it."""

    def __init__(self, path: str | Path, *, keeps_uploads: bool = True) -> None:
        """Take the directory, made if need be; raises StateError where it can't be had."""
        self.path = Path(path)
        self.keeps_uploads = keeps_uploads
        self.adapters = self.path / "adapters"
        self._texts = self.path / "texts"
        self._uploads = self.path / "uploads"
        self._work = self.path / "work"
        try:
            for folder in (self.path, self.adapters, self._texts, self._uploads, self._work):
                folder.mkdir(mode=0o700, parents=folder is self.path, exist_ok=True)
            self._lock = open(self.path / "lock", "ab", opener=_private)  # noqa: SIM115 - see close
        except OSError as error:
            raise StateError(f"state directory {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StateError(f"state directory {path}: another server is using it") from error

    def close(self) -> None:
        """Let another server have the directory."""
        self._lock.close()

    def read(self) -> Registry:
        """The registry, empty where there is none; raises StateError for one that is no good."""
        file = self.path / REGISTRY
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            return Registry()
        except OSError as error:
            raise StateError(f"{file} can't be read: {error.strerror or error}") from error
        try:
            version = msgspec.json.decode(raw, type=_Format).format
            if version != FORMAT:
                raise ValueError(f"is of format {version}; this server reads format {FORMAT}")
            document = msgspec.json.decode(raw, type=_Document)
            _check(document)
        except (ValueError, BranchlineError) as error:  # a msgspec error is a ValueError
            raise StateError(f"{file} is no good: {' '.join(str(error).split())}") from error
        return Registry(document.adapters, document.aliases)

    def write(self, registry: Registry) -> None:
        """Replace the registry in one step; raises StateError, with the old one still in place.

        One that is in place counts, though a disk at fault may lose it when the power goes.
        """
        document = _Document(FORMAT, dict(registry.adapters), dict(registry.aliases))
        file = self.path / REGISTRY
        temporary = self._work / f"{REGISTRY}.{uuid.uuid4().hex}"
        try:
            try:
                with open(temporary, "xb", opener=_private) as stream:
                    stream.write(msgspec.json.encode(document))
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StateError(f"{file} can't be written: {error.strerror or error}") from error
        try:
            _sync(self.path)
        except OSError:
            logger.exception("%s is written, but its directory can't be synced", file)

    @property
    def blobs(self) -> Path:
        """Where archives of the fleet lie; made by who keeps them."""
        return self.path / "blobs"

    def formatted(self, digest: str) -> Path:
        """Where a version's formatted file lies."""
        return formatted_path(self.adapters, digest)

    def text(self, text_digest: str) -> Path:
        """Where an adapter's tokenizer and template files lie."""
        return self._texts / text_digest

    def upload(self, digest: str) -> Path:
        """Where the files of an upload are kept."""
        return self._uploads / digest

    def new_work(self) -> Path:
        """A new, empty directory for a put; on the same file system as the rest."""
        return Path(tempfile.mkdtemp(prefix="put-", dir=self._work))

    def move_in(self, source: Path, target: Path) -> None:
        """Move a file of a workroom to its place; a directory only if there is none already.

        What lies there under a digest is the same, but a file may be of another base model.
        """
        if not target.is_dir():
            os.replace(source, target)

    def flush(self, *paths: Path) -> None:
        """Have files and directories on the disk itself, before a registry names them."""
        for path in paths:
            for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
                _sync(entry)
            _sync(path.parent)

    def move_out(self, path: Path) -> Path | None:
        """Take a file or directory from its place; None if there is nothing. To be removed."""
        trash = self._work / f"gone-{uuid.uuid4().hex}"
        try:
            os.replace(path, trash)
        except FileNotFoundError:
            return None
        return trash

    def remove(self, path: Path) -> None:
        """Remove what ``move_out`` gave."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def tidy(self, registry: Registry) -> None:
        """Drop what puts in progress left, and every file that the registry does not name."""
        versions = list(registry.all_versions())
        digests = {version.digest for version in versions}
        texts = {version.text_digest for version in versions}
        keep: dict[Path, Iterable[str | None]] = {
            self.adapters: {self.formatted(digest).name for digest in digests},
            self._texts: texts,
            self._uploads: digests,
            self._work: set(),
        }
        for folder, names in keep.items():
            for entry in folder.iterdir():
                if entry.name not in names:
                    self.remove(entry)


class _Format(msgspec.Struct):
    """What every format of ``registry.json`` begins with."""

    format: int


@contextmanager
def open_state(path: str | None) -> Iterator[StateDirectory]:
    """The state directory; without a path one that is gone at the end."""
    with contextlib.ExitStack() as stack:
        if path is None:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="branchline-state-", ignore_cleanup_errors=True)
            )
            state = StateDirectory(folder, keeps_uploads=False)
        else:
            state = StateDirectory(Path(path).expanduser())
        stack.callback(state.close)
        yield state


def _check(document: _Document) -> None:
    """Raise ValueError or BranchlineError unless the records hold together."""
    for name, record in document.adapters.items():
        check_name(name)
        numbers = [version.number for version in record.versions]
        if not record.history or not set(record.history) <= set(numbers):
            raise ValueError(f"adapter {name!r} has no current version")
        if sorted(set(numbers)) != numbers or numbers[-1] >= record.next_number:
            raise ValueError(f"adapter {name!r} has bad version numbers")
        for version in record.versions:
            for digest in (version.digest, version.text_digest):
                msgspec.convert(digest, _HexDigest | None)
            if version.digest != version.facts.digest:
                raise ValueError(f"version {version.number} of {name!r} has two digests")
    for alias, entry in document.aliases.items():
        check_name(alias)
        check_targets(entry.targets)
        if alias in document.adapters:
            raise ValueError(f"{alias!r} is both an adapter and an alias")
        for target in entry.targets:
            adapter = document.adapters.get(target.adapter)
            if adapter is None or (target.version and adapter.find(target.version) is None):
                raise ValueError(
                    f"alias {alias!r} points at {target.adapter!r}, which is not there"
                )


def _private(path: str, flags: int) -> int:
    """Open for the owner alone: a source's address may hold a signature."""
    return os.open(path, flags, 0o600)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
