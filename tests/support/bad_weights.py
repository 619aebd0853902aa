"""Adapters whose weights must be refused, each with the answer that it has to get."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_puts import (
    INDEX,
    Q_A,
    Q_B,
    RANK,
    V_A,
    WEIGHTS,
    BadPut,
    Put,
    Tensors,
    Workshop,
    bytes_with,
    directory_with,
    header_with,
    join_header,
    split_header,
    tensor_of,
    tensors_with,
    without,
)
from safetensors.torch import load_file, save_file
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model


def _twice(content: bytes) -> bytes:
    """Two entries of one name: readers take the last."""
    header, data = split_header(content)
    text = json.dumps(header)
    entry = json.dumps({Q_A: header[Q_A]})[1:-1]
    return join_header(f"{text[:-1]}, {entry}}}".encode(), data)


def _overlap(header: dict[str, Any]) -> None:
    header[V_A]["data_offsets"] = header[Q_A]["data_offsets"]


def _end_outside(header: dict[str, Any]) -> None:
    start, end = header[Q_A]["data_offsets"]
    header[Q_A]["data_offsets"] = [start + (1 << 40), end + (1 << 40)]


def _of_gpt2(tensors: Tensors) -> None:
    for name in list(tensors):
        renamed = name.replace("model.layers", "transformer.h").replace("self_attn", "attn")
        tensors[renamed] = tensors.pop(name)


def _renamed(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def _set_one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1, 2] = value
        return tensor

    return change


def _pickle_only(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


def _pipe(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


def _weights_elsewhere(workshop: Workshop) -> Put:
    directory = workshop.copy()
    (directory / WEIGHTS).rename(workshop.outside / WEIGHTS)
    (directory / WEIGHTS).symlink_to(workshop.outside / WEIGHTS)
    return Put(str(directory))


def _other_base(workshop: Workshop) -> Put:
    """As small a model, with other sizes."""
    model = workshop.outside / "narrow"
    if not model.exists():
        make_tiny_model(model, "llama", hidden_size=32, tokenizer=False)
    directory = workshop.copy()
    shutil.rmtree(directory)
    make_adapter(model, directory, RANK, target_modules=["q_proj", "v_proj"])
    return Put(str(directory))


def _sharded(change: Callable[[Path, dict[str, str]], object]) -> Callable[[Workshop], Put]:
    """In two shards; ``change`` spoils the directory or the map from tensors to files."""

    def spoil(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        (directory / WEIGHTS).unlink()
        names = sorted(tensors)
        weight_map: dict[str, str] = {}
        for number in (1, 2):
            file = f"adapter_model-{number:05}-of-00002.safetensors"
            part = {name: tensors[name] for name in names[number - 1 :: 2]}
            save_file(part, directory / file)
            weight_map |= dict.fromkeys(part, file)
        change(directory, weight_map)
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return directory_with(spoil)


def _lose_a_shard(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / weight_map[Q_A]).unlink()


def _shard_elsewhere(directory: Path, weight_map: dict[str, str]) -> None:
    weight_map[Q_A] = f"../good/{WEIGHTS}"


def _in_the_wrong_shard(directory: Path, weight_map: dict[str, str]) -> None:
    file = directory / weight_map[Q_A]
    tensors = load_file(file)
    del tensors[Q_A]
    save_file(tensors, file)


BAD_WEIGHTS: dict[str, BadPut] = {
    "truncated in the header": BadPut(bytes_with(lambda b: b[:40]), WEIGHTS, "truncated"),
    "truncated in the data": BadPut(bytes_with(lambda b: b[:-100]), WEIGHTS, "not a whole"),
    "more data than tensors": BadPut(bytes_with(lambda b: b + b"more"), WEIGHTS, "not a whole"),
    "an empty file": BadPut(bytes_with(lambda b: b""), WEIGHTS, "truncated"),
    "a header of 2**40 bytes": BadPut(
        bytes_with(lambda b: (1 << 40).to_bytes(8, "little") + b[8:]), WEIGHTS, "1099511627776"
    ),
    "a header that is not JSON": BadPut(
        bytes_with(lambda b: join_header(b"{" * 64, b"")), WEIGHTS, "not a whole"
    ),
    "a tensor twice in the header": BadPut(bytes_with(_twice), WEIGHTS, "twice"),
    "overlapping tensors": BadPut(header_with(_overlap), WEIGHTS, "not a whole"),
    "a tensor outside the file": BadPut(header_with(_end_outside), WEIGHTS, "not a whole"),
    "int8": BadPut(tensor_of(Q_A, lambda t: t.to(torch.int8)), Q_A, "dtype I8"),
    "float64": BadPut(tensor_of(Q_A, lambda t: t.double()), Q_A, "dtype F64"),
    "another shape of A": BadPut(tensor_of(Q_A, lambda t: t[:, 1:].clone()), Q_A, "[4, 63]"),
    "another shape of B": BadPut(tensor_of(Q_B, lambda t: t[1:].clone()), Q_B, "[63, 4]"),
    "A is a vector": BadPut(tensor_of(Q_A, lambda t: t.flatten()), Q_A, "[256]"),
    "NaN": BadPut(tensor_of(Q_A, _set_one(float("nan"))), Q_A, "NaN"),
    "infinity": BadPut(tensor_of(Q_B, _set_one(float("-inf"))), Q_B, "infinity"),
    "another architecture": BadPut(
        tensors_with(_of_gpt2),
        Q_A.replace("model.layers", "transformer.h").replace("self_attn", "attn"),
        "the base model has no transformer.h.0.attn.q_proj",
    ),
    "layer 99": BadPut(
        tensors_with(_renamed("layers.3.", "layers.99.")),
        Q_A.replace("layers.0.", "layers.99."),
        "it has 4 layers",
    ),
    "an unknown module": BadPut(
        tensors_with(_renamed("q_proj", "query")),
        Q_A.replace("q_proj", "query"),
        "has no model.layers.0.self_attn.query",
    ),
    "half a pair": BadPut(tensors_with(lambda t: t.pop(Q_B)), Q_B, "missing"),
    "no pair": BadPut(tensors_with(lambda t: t.clear()), Q_A, "missing, with 15 more"),
    "a tensor of no adapter": BadPut(
        tensors_with(lambda t: t.update(weights=torch.ones(1))), "weights", "not named as PEFT"
    ),
    "another base": BadPut(_other_base, Q_A, "[4, 32]; the base model and r ask for [4, 64]"),
    "no weights": BadPut(without(WEIGHTS), WEIGHTS, "missing"),
    "a pickle": BadPut(directory_with(_pickle_only), "adapter_model.bin", "a pickle"),
    "a pipe": BadPut(directory_with(_pipe), WEIGHTS, "not a regular file"),
    "weights elsewhere": BadPut(_weights_elsewhere, WEIGHTS, "a link that leads out"),
    "a lost shard": BadPut(
        _sharded(_lose_a_shard), "adapter_model-00001-of-00002.safetensors", "missing"
    ),
    "a shard elsewhere": BadPut(_sharded(_shard_elsewhere), INDEX, "not the plain name"),
    "a tensor in the wrong shard": BadPut(
        _sharded(_in_the_wrong_shard), Q_A, "where the index has it"
    ),
}
