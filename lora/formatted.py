"""One file per adapter version: its pages and dense parts as the engine holds them.

It is a safetensors file (https://github.com/huggingface/safetensors#format): a header, then all
tensors in one span of bytes, which is read as it is into host memory. Tensors are
``{group}.a``, ``{group}.b``, ``{group}.scales`` (of pages in 8 bits), ``vectors`` and
``table.{name}``; see ``weights``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from .errors import AdapterError
from .weights import AdapterWeights, DenseWeights, GroupWeights

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
}
_MAX_HEADER_BYTES = 16 << 20
_KEY = "branchline"


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A tensor within the data of a formatted file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    def of(self, data: Tensor) -> Tensor:
        """The tensor as a view of the file's data [num_bytes] uint8."""
        return data[self.start : self.stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class FormattedHeader:
    """What a formatted file says of itself; ``about`` is the writer's own."""

    path: str
    data_start: int
    num_bytes: int
    parts: Mapping[str, StoredPart]
    affine_groups: frozenset[str]
    norms: frozenset[str]
    vocab_size: int | None
    invocation_tokens: tuple[int, ...] | None
    about: Mapping[str, str]

    def weights_in(self, data: Tensor) -> AdapterWeights:
        """The adapter as views of the file's data [num_bytes] uint8."""
        groups = {
            name.removesuffix(".a"): self._group_in(data, name.removesuffix(".a"))
            for name in self.parts
            if name.endswith(".a")
        }
        tables = {
            name.removeprefix("table."): part.of(data)
            for name, part in self.parts.items()
            if name.startswith("table.")
        }
        vectors = self.parts.get("vectors")
        dense = None
        if vectors is not None or tables:
            dense = DenseWeights(
                None if vectors is None else vectors.of(data),
                self.affine_groups,
                self.norms,
                tables,
            )
        return AdapterWeights(groups, dense, self.vocab_size)

    def _group_in(self, data: Tensor, name: str) -> GroupWeights:
        a, b = (self.parts[f"{name}.{half}"].of(data) for half in "ab")
        scales = self.parts.get(f"{name}.scales")
        return GroupWeights(a, b, None if scales is None else scales.of(data))

    @cached_property
    def shapes(self) -> AdapterWeights:
        """The adapter without its numbers, for what only asks for sizes."""
        return self.weights_in(torch.empty(self.num_bytes, dtype=torch.uint8, device="meta"))

    def read_into(self, data: Tensor) -> int:
        """Fill ``data`` [num_bytes] uint8, on the CPU, from the file; returns the bytes.

        Raises AdapterError where the file is gone or has become shorter.
        """
        view = data.numpy().data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.data_start)
                done = 0
                while done < self.num_bytes and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise AdapterError("path", f"can't be read: {error.strerror or error}") from None
        if done < self.num_bytes:
            raise AdapterError("path", f"holds {done} bytes of {self.num_bytes}")
        return done


def write_formatted(
    path: Path,
    weights: AdapterWeights,
    invocation_tokens: tuple[int, ...] | None,
    about: Mapping[str, str],
) -> None:
    """Write the file, whole or not at all, also if the machine stops in the midst of it."""
    tensors: dict[str, Tensor] = {}
    for name, group in weights.groups.items():
        tensors |= {f"{name}.a": group.a.contiguous(), f"{name}.b": group.b.contiguous()}
        if group.scales is not None:
            tensors[f"{name}.scales"] = group.scales.contiguous()
    dense = weights.dense or DenseWeights()
    if dense.vectors is not None:
        tensors["vectors"] = dense.vectors.contiguous()
    tensors |= {f"table.{name}": table.clone() for name, table in dense.tables.items()}
    own = {
        "affine_groups": sorted(dense.affine_groups),
        "norms": sorted(dense.norms),
        "vocab_size": weights.vocab_size,
        "invocation_tokens": invocation_tokens,
    }
    _replace(path, save(tensors, {**about, _KEY: json.dumps(own)}))


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".tmp", path.name, path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_header(path: str | Path) -> FormattedHeader:
    """What a formatted file says of itself; raises AdapterError if it is none, or not whole."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= _MAX_HEADER_BYTES:
                raise AdapterError("path", "is no formatted adapter")
            header = json.loads(file.read(size))
            num_bytes = os.fstat(file.fileno()).st_size - 8 - size
        return _parse(str(path), 8 + size, num_bytes, header)
    except OSError as error:
        raise AdapterError("path", f"can't be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError("path", f"is no formatted adapter: {error!r}") from None


def _parse(path: str, data_start: int, num_bytes: int, header: dict[str, Any]) -> FormattedHeader:
    about: dict[str, str] = header.pop("__metadata__")
    own = json.loads(about.pop(_KEY))
    parts = {
        name: StoredPart(_DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in header.items()
    }
    for name, part in parts.items():
        size = math.prod(part.shape) * part.dtype.itemsize
        if part.start < 0 or part.stop - part.start != size:
            raise AdapterError("path", f"is no formatted adapter: the size of {name} is wrong")
        if name.endswith((".a", ".b")) and f"{name[:-1]}{'ba'[name[-1] == 'b']}" not in parts:
            raise AdapterError("path", f"is no formatted adapter: {name} is alone")
    if max((part.stop for part in parts.values()), default=0) != num_bytes:
        raise AdapterError("path", f"holds {num_bytes} bytes of data, not what its header says")
    tokens = own["invocation_tokens"]
    return FormattedHeader(
        path=path,
        data_start=data_start,
        num_bytes=num_bytes,
        parts=parts,
        affine_groups=frozenset(own["affine_groups"]),
        norms=frozenset(own["norms"]),
        vocab_size=own["vocab_size"],
        invocation_tokens=None if tokens is None else tuple(tokens),
        about=about,
    )
