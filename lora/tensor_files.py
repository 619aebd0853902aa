"""The tensors of an adapter, whatever files they are in: headers first, values when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import AdapterError
from .files import WEIGHTS_FILE, unique_keys, weight_map, weights_files

DTYPES = ("F32", "F16", "BF16")
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """``shapes`` and ``dtypes`` by tensor name, from the headers alone."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    _files: Mapping[str, Any]

    def check(self, name: str, shape: tuple[int, ...], source: str) -> None:
        """Refuse a tensor of another dtype or shape; ``source`` says what asks for this one."""
        if self.dtypes[name] not in DTYPES:
            raise AdapterError(name, f"has dtype {self.dtypes[name]}; allowed: {', '.join(DTYPES)}")
        if self.shapes[name] != shape:
            raise AdapterError(
                name, f"has shape {list(self.shapes[name])}; {source} for {list(shape)}"
            )

    def read(self, name: str) -> torch.Tensor:
        """A float32 copy of a tensor, surely finite."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        require_finite(name, tensor)
        return tensor.to(torch.float32, copy=True)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[AdapterTensors]:
    """The tensors of an adapter directory.

    Raises AdapterError that names the file, or the tensor that is twice there, or not where the
    index has it.
    """
    files: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    paths = weights_files(path)
    with ExitStack() as stack:
        for shown, file in paths.items():
            for name, tensors in _open(file, shown, stack).items():
                if name in files:
                    raise AdapterError(name, "is in two shards")
                header = tensors.get_slice(name)
                files[name] = tensors
                shapes[name], dtypes[name] = tuple(header.get_shape()), header.get_dtype()
        if WEIGHTS_FILE not in paths:
            _check_index(weight_map(path), files)
        yield AdapterTensors(shapes, dtypes, files)


def _open(file: Path, shown: str, stack: ExitStack) -> dict[str, Any]:
    _check_header_size(file, shown)
    try:
        tensors = stack.enter_context(safe_open(str(file), framework="pt"))
    except (SafetensorError, OSError) as error:
        raise AdapterError(shown, f"is not a whole safetensors file: {error}") from None
    _refuse_twins(file, shown)
    return dict.fromkeys(tensors.keys(), tensors)


def _check_header_size(file: Path, shown: str) -> None:
    """The header is parsed in memory, so its length is judged first."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > MAX_HEADER_BYTES or size + 8 > file.stat().st_size:
        raise AdapterError(
            shown, f"claims a header of {size} bytes; truncated, or not a safetensors file"
        )


def _refuse_twins(file: Path, shown: str) -> None:
    """A name twice in the header: safetensors takes the last of them."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size)
    try:
        header = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise AdapterError(shown, f"is no sound safetensors file: {error}") from None
    if len(header) > MAX_TENSORS:
        raise AdapterError(shown, f"holds {len(header)} tensors, at most {MAX_TENSORS} are read")


def _check_index(index: Mapping[str, str], files: Mapping[str, Any]) -> None:
    for name in index.keys() - files.keys():
        raise AdapterError(name, f"is not in {index[name]}, where the index has it")
    for name in files.keys() - index.keys():
        raise AdapterError(name, "is in a shard, but not in the index")


def require_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise AdapterError where a value is NaN or infinite."""
    if not tensor.isfinite().all():
        raise AdapterError(name, "holds NaN or infinity")
