"""A digest of all that decides what a replica's base model says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ...engine.config import EngineConfig
from ...engine.types import EngineInfo
from ..text.text_files import TEXT_FILES

DIGEST_BYTES = 16
MODEL_CONFIG = "config.json"
SAMPLE_BYTES = 4096
MAX_WHOLE_FILE_BYTES = 64 << 20
MAX_HEADER_BYTES = 100 << 20

# A new number when equal files and settings begin to give other tokens: a new sampling rule.
_RULE = b"branchline tokens 1"
_LENGTH_BYTES = 8


def fingerprint_model(config: EngineConfig, info: EngineInfo, chat_template: str | None) -> str:
    """A digest, 32 hex digits, equal for replicas that answer base requests alike.

    It is of ``config.json``, the weights, the dtypes and quantization in use, the tokenizer's
    files and the chat template in use. Of a weight file over 64 MiB it takes the header, the size
    and the first and last 4 KiB of every tensor: to read a large model whole would hold up the
    start by minutes. So two that differ in the middle of tensors alone, as no training or
    conversion leaves them, are taken for one. What a request's parameters are made of (defaults,
    context length) is no part of it: those are compared request by request. Nor is the kind of
    device, which only adds in another order. Raises OSError.
    """
    directory = Path(config.model)
    digest = hashlib.blake2b(_RULE, digest_size=DIGEST_BYTES)
    settings = [
        *(info.architecture, info.dtype, info.adapter_dtype, config.kv_cache_dtype),
        *(config.quantization, info.vocab_size, sorted(info.eos_token_ids), chat_template),
    ]
    for part in (msgspec.json.encode(settings), *_file_parts(directory)):
        digest.update(len(part).to_bytes(_LENGTH_BYTES, "little"))
        digest.update(part)
    return digest.hexdigest()


def _file_parts(directory: Path) -> Iterator[bytes]:
    for name in (MODEL_CONFIG, *TEXT_FILES):
        path = directory / name
        if path.is_file():
            yield name.encode()
            yield path.read_bytes()
    for path in sorted(directory.glob("*.safetensors")):
        yield path.name.encode()
        yield from _weight_parts(path)


def _weight_parts(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield size.to_bytes(_LENGTH_BYTES, "little")
    with path.open("rb") as file:
        if size <= MAX_WHOLE_FILE_BYTES:
            yield file.read()
            return
        header = _read_header(file)
        yield header
        start = _LENGTH_BYTES + len(header)
        for first, last in sorted(_extents(header)):
            yield _read(file, start + first, min(SAMPLE_BYTES, last - first))
            yield _read(
                file, start + max(first, last - SAMPLE_BYTES), min(SAMPLE_BYTES, last - first)
            )


def _read_header(file: BinaryIO) -> bytes:
    """The JSON behind its length, see the safetensors format."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    return file.read(min(length, MAX_HEADER_BYTES))


def _extents(header: bytes) -> list[tuple[int, int]]:
    """Where each tensor's bytes begin and end, behind the header; none of what is no header.

    The engine has read its own files by now, so that is a file which only lies beside them.
    """
    try:
        fields: dict[str, Any] = json.loads(header)
        entries = [entry for name, entry in fields.items() if name != "__metadata__"]
        return [(int(first), int(last)) for first, last in (e["data_offsets"] for e in entries)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _read(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    file.seek(position)
    return file.read(num_bytes)
