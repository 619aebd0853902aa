"""Puts that must be refused: a good adapter, and the ways to spoil it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
INDEX = "adapter_model.safetensors.index.json"

RANK = 4
LAYER = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_B.weight"
V_A = f"{LAYER}.v_proj.lora_A.weight"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where bad adapters are made: ``root`` is allowed as a source, ``outside`` is not."""

    model: Path
    good: Path
    root: Path
    outside: Path

    @classmethod
    def open(cls, directory: Path) -> Workshop:
        """A new one, with a good adapter to spoil."""
        root, outside = directory / "root", directory / "outside"
        outside.mkdir(parents=True)
        model = make_tiny_model(directory / "model", "llama")
        good = make_adapter(model, root / "good", RANK, target_modules=["q_proj", "v_proj"], seed=7)
        return cls(model, good, root, outside)

    def copy(self) -> Path:
        """The good adapter again, in the root, under a name that is always the same."""
        directory = self.root / "bad"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.good, directory)
        return directory


@dataclass(frozen=True, slots=True)
class Put:
    """One request: JSON with a ``source`` and ``fields``, or a ``body`` of its own type.

    ``name`` is sent as it is, with its slashes, dots and escapes.
    """

    source: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    name: str = "bad"

    @property
    def content(self) -> bytes:
        """The body to send."""
        if self.body is not None:
            return self.body
        source = {} if self.source is None else {"source": self.source}
        return json.dumps({**source, **self.fields}).encode()


@dataclass(frozen=True, slots=True)
class BadPut:
    """How it is made, and what the answer has to name and say."""

    make: Callable[[Workshop], Put]
    param: str | None
    says: str
    code: str | None = "adapter_refused"
    status: int = 400


def directory_with(spoil: Callable[[Path], object]) -> Callable[[Workshop], Put]:
    """The good adapter's directory, spoiled."""

    def make(workshop: Workshop) -> Put:
        directory = workshop.copy()
        spoil(directory)
        return Put(str(directory))

    return make


def config_with(**fields: object) -> Callable[[Workshop], Put]:
    """Other fields in the configuration; the weights are good."""
    return directory_with(lambda directory: edit_config(directory, **fields))


def edit_config(directory: Path, **fields: object) -> None:
    file = directory / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def config_of(content: bytes) -> Callable[[Workshop], Put]:
    """A configuration of these bytes."""
    return directory_with(lambda directory: (directory / CONFIG).write_bytes(content))


def tensors_with(change: Callable[[Tensors], object]) -> Callable[[Workshop], Put]:
    """Other tensors, in a sound file."""

    def spoil(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS)

    return directory_with(spoil)


def tensor_of(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Put]:
    """One tensor that is another."""
    return tensors_with(lambda tensors: tensors.update({name: change(tensors[name])}))


def bytes_with(change: Callable[[bytes], bytes]) -> Callable[[Workshop], Put]:
    """Other bytes in the file of the weights."""

    def spoil(directory: Path) -> None:
        file = directory / WEIGHTS
        file.write_bytes(change(file.read_bytes()))

    return directory_with(spoil)


def header_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Workshop], Put]:
    """Another header, of sound JSON, before the same data."""

    def spoil(content: bytes) -> bytes:
        header, data = split_header(content)
        change(header)
        return join_header(json.dumps(header).encode(), data)

    return bytes_with(spoil)


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    return header, content[8 + size :]


def join_header(header: bytes, data: bytes) -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(8, "little") + header + data


def without(name: str) -> Callable[[Workshop], Put]:
    """One file that is missing."""
    return directory_with(lambda directory: (directory / name).unlink())
