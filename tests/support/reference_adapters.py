"""Putting adapters on transformers models with PEFT, as their makers would."""

from __future__ import annotations

import copy
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

WEIGHTS, INDEX = "adapter_model.safetensors", "adapter_model.safetensors.index.json"
_PLAIN = re.compile(r"base_model\.model\.(?!lm_head).+\.lora_[AB]\.weight")


TINY_BYTES = 8 << 20
"""Bases of fewer bytes are kept in memory and copied, which is several times as fast as loading."""


def load_base(model_dir: str | Path) -> PreTrainedModel:
    """A base model in float32, with attention that is easy to trust; the caller's own."""
    files = tuple(
        (path.name, (found := path.stat()).st_size, found.st_mtime_ns)
        for path in sorted(Path(model_dir).iterdir())
        if path.suffix in (".json", ".safetensors")
    )
    if sum(size for _, size, _ in files) > TINY_BYTES:
        return _read_base(str(model_dir))
    return copy.deepcopy(_tiny_base(str(model_dir), files))


@lru_cache(maxsize=4)
def _tiny_base(model_dir: str, files: tuple[tuple[str, int, int], ...]) -> PreTrainedModel:
    """The base as ``files`` had it; who asks copies it."""
    return _read_base(model_dir)


def _read_base(model_dir: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return model


def shares_base(adapter_dir: Path) -> bool:
    """Whether it is pairs on the layers' linears and no more, so that others do not feel it."""
    return all(_PLAIN.fullmatch(name) for name in _shapes(adapter_dir))


def base_for(adapter_dir: Path, model_dir: str | Path) -> PreTrainedModel:
    """A base for this adapter alone, with as many tokens as its tables have."""
    base = load_base(model_dir)
    for name, shape in _shapes(adapter_dir).items():
        if re.search(r"(embed_tokens|lm_head)(\.\w+)*\.weight$", name) and "lora" not in name:
            base.resize_token_embeddings(shape[0], mean_resizing=False)
    return base


def add_adapter(model: PreTrainedModel | PeftModel, name: str, path: Path) -> PeftModel:
    """The model with this adapter as well."""
    with whole_weights(path) as whole, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied heads and of tables in the file
        if isinstance(model, PeftModel):
            model.load_adapter(str(whole), adapter_name=name, torch_device="cpu")
            return model
        return PeftModel.from_pretrained(model, str(whole), adapter_name=name, torch_device="cpu")


@contextmanager
def whole_weights(path: Path) -> Iterator[Path]:
    """The adapter in one file, which is all that PEFT reads; shards are joined in a copy."""
    if not (path / INDEX).exists():
        yield path
        return
    with TemporaryDirectory() as directory:
        shutil.copy(path / "adapter_config.json", directory)
        tensors = {name: t for file in _files(path) for name, t in load_file(file).items()}
        save_file(tensors, Path(directory, WEIGHTS), metadata={"format": "pt"})
        yield Path(directory)


def _files(path: Path) -> list[Path]:
    if not (path / INDEX).exists():
        return [path / WEIGHTS]
    index = json.loads((path / INDEX).read_text())
    return [path / name for name in sorted(set(index["weight_map"].values()))]


def _shapes(path: Path) -> dict[str, list[int]]:
    shapes = {}
    for file in _files(path):
        with safe_open(str(file), framework="pt") as tensors:
            names = tensors.keys()
            shapes |= {name: tensors.get_slice(name).get_shape() for name in names}
    return shapes
