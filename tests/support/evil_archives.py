"""Archives of adapters, good and bad, written byte by byte where the libraries would refuse."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

CONFIG = b'{"peft_type": "LORA", "r": 8}'
WEIGHTS = bytes(range(256)) * 64
ADAPTER = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}

Files = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


def pairs(files: Files) -> list[tuple[str, bytes]]:
    return list(files.items() if isinstance(files, Mapping) else files)


def zip_of(files: Files = ADAPTER, mode: int = stat.S_IFREG | 0o644, **options: int) -> bytes:
    """A zip; ``mode`` is what each file is on Unix."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as archive:
        for name, content in pairs(files):
            info = zipfile.ZipInfo(name)
            info.compress_type = archive.compression
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return out.getvalue()


def tar_of(files: Files = ADAPTER, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in pairs(files):
            archive.addfile(member(name, len(content)), io.BytesIO(content))
    return out.getvalue()


def member(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar_with(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """A tar of an adapter with one more member before it."""
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.GNU_FORMAT) + content + padding + tar_of()


def tar_gz_of_zeros(name: str, num_bytes: int) -> bytes:
    """A small tar.gz with one file that is large."""
    out = io.BytesIO()
    with gzip.open(out, "wb") as file:
        file.write(member(name, num_bytes).tobuf())
        for _ in range(num_bytes >> 20):
            file.write(bytes(1 << 20))
        file.write(tar_of())
    return out.getvalue()


def greedy_xz(content: bytes) -> bytes:
    """An xz whose header asks its reader for a gigabyte."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30, "mf": lzma.MF_HC3}]
    return lzma.compress(content, filters=filters)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def files_below(directory: Path) -> set[str]:
    """All that lies below a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
