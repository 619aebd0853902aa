"""An open safetensors checkpoint: one file, or shards with an index, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .fields import Fields, UnsupportedModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_DTYPES = ("F32", "BF16", "F16", "F64")
# Buffers that old checkpoints carry and that we compute ourselves.
IGNORED_SUFFIX = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open safetensors file."""

    name: str
    path: Path
    file: Any  # safetensors.safe_open has no types

    def check(self, target: Tensor) -> None:
        """Raise UnsupportedModelError unless the header's shape and dtype fit ``target``."""
        header = self.file.get_slice(self.name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        where = f"{self.path}: tensor {self.name}"
        if shape != tuple(target.shape):
            expected = list(target.shape)
            raise UnsupportedModelError(f"{where} has shape {list(shape)}; must be {expected}")
        if dtype not in STORED_DTYPES:
            allowed = ", ".join(STORED_DTYPES)
            raise UnsupportedModelError(f"{where} has dtype {dtype}; must be one of {allowed}")

    def read(self) -> Tensor:
        """A view into the mapped file, not a copy."""
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor


def open_checkpoint(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """Every stored tensor by name; the files stay open until ``stack`` closes."""
    stored: dict[str, StoredTensor] = {}
    for file_path in _checkpoint_files(path):
        try:
            file = stack.enter_context(safe_open(file_path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise UnsupportedModelError(f"{file_path}: can't be read: {error}") from None
        for name in file.keys():  # noqa: SIM118  a safe_open is no dict
            if name.endswith(IGNORED_SUFFIX):
                continue
            if name in stored:
                raise UnsupportedModelError(f"{file_path}: tensor {name} is in two files")
            stored[name] = StoredTensor(name, file_path, file)
    return stored


def _checkpoint_files(path: Path) -> Iterator[Path]:
    if (path / SINGLE_FILE).exists():
        yield path / SINGLE_FILE
        return
    if not (path / INDEX_FILE).exists():
        raise UnsupportedModelError(f"{path}: has neither {SINGLE_FILE} nor {INDEX_FILE}")
    index = Fields.from_file(path / INDEX_FILE)
    weight_map = index.section("weight_map")
    if weight_map is None:
        raise index.error("weight_map", "an object of tensor names and file names")
    for name in dict.fromkeys(weight_map.values.values()):
        # A plain name: an index must not lead out of its directory.
        if (
            not isinstance(name, str)
            or name != Path(name).name
            or not name.endswith(".safetensors")
        ):
            raise UnsupportedModelError(
                f"{index.where}: file name {name!r} must be a plain *.safetensors name"
            )
        yield path / name
