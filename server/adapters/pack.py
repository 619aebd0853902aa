"""A local adapter on its way to a server: a directory as a tar that is made while it is sent."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from .files import CHUNK_BYTES, is_kept

_ARCHIVES = {".zip": "application/zip"}
_TAR = "application/x-tar"


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent; ``num_bytes`` is its length, ``read`` begins anew with each call."""

    content_type: str
    num_bytes: int
    read: Callable[[], Iterator[bytes]]

    @classmethod
    def of(cls, path: Path) -> Upload:
        """A directory's files as a tar, an archive as it is; raises ClickException."""
        if not path.is_dir():
            content_type = _ARCHIVES.get(path.suffix.lower(), _TAR)
            return cls(content_type, path.stat().st_size, lambda: _chunks(path))
        # A trainer leaves much else beside an adapter.
        files = [file for file in sorted(path.iterdir()) if file.is_file() and is_kept(file.name)]
        if not any(file.suffix == ".safetensors" for file in files):
            raise click.ClickException(
                f"--upload: {path} holds no adapter_model.safetensors; save the adapter with "
                "save_pretrained (pickles, as adapter_model.bin is, are not served)"
            )
        members = [_Member.of(file) for file in files]
        total = sum(member.num_bytes for member in members) + len(_END)
        return cls(_TAR, total, lambda: _tar(members))

    @property
    def headers(self) -> Mapping[str, str]:
        """With the length, so that what is too large is refused before it is sent."""
        return {"content-type": self.content_type, "content-length": str(self.num_bytes)}


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of a tar; ``size`` is what it had when the length was announced."""

    path: Path
    size: int
    header: bytes

    @classmethod
    def of(cls, path: Path) -> _Member:
        info = tarfile.TarInfo(path.name)
        info.size = path.stat().st_size
        return cls(path, info.size, info.tobuf(tarfile.PAX_FORMAT))

    @property
    def padding(self) -> bytes:
        return bytes(-self.size % tarfile.BLOCKSIZE)

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.size + len(self.padding)


_END = bytes(2 * tarfile.BLOCKSIZE)


def _tar(members: list[_Member]) -> Iterator[bytes]:
    """The files as one tar, read as they are sent: a large adapter is never copied first."""
    for member in members:
        yield member.header
        num_read = 0
        for chunk in _chunks(member.path):
            num_read += len(chunk)
            yield chunk
        if num_read != member.size:
            raise click.ClickException(f"{member.path} changed while it was sent")
        yield member.padding
    yield _END


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
