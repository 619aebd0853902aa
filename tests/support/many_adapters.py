"""A thousand adapters written without PEFT, and a reference that asks many of them at once."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from reference_adapters import load_base
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

RANKS = (4, 8, 16, 32, 64)
MODULES = ("q_proj", "v_proj")
SCALE = 0.5
"""The size of a delta beside the weight that it changes."""

_PAGE_RANK = 16
ALPHA = 2
"""``lora_alpha`` in ranks: what a delta is multiplied by."""


@dataclass(frozen=True, slots=True)
class TinyAdapter:
    """One of them."""

    name: str
    rank: int
    path: Path

    @property
    def num_pages(self) -> int:
        """Pages of 16 ranks that it takes, of the one group that it changes."""
        return -(-self.rank // _PAGE_RANK)


def write_adapters(model_dir: Path, root: Path, count: int, seed: int = 0) -> list[TinyAdapter]:
    """``count`` adapters with ranks of ``RANKS``, on queries and values of every layer."""
    base = load_base(model_dir)
    weights = {name: base.get_parameter(f"{name}.weight") for name in _targets(base)}
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    adapters = []
    for number in range(count):
        rank = rng.choice(RANKS)
        adapter = TinyAdapter(f"tenant-{number:04}", rank, root / f"{number:04}")
        _write(adapter, weights, generator)
        adapters.append(adapter)
    return adapters


def _targets(base: nn.Module) -> list[str]:
    names = [name for name, _ in base.named_modules()]
    return [name for name in names if name.rpartition(".")[2] in MODULES]


def _write(adapter: TinyAdapter, weights: dict[str, Tensor], generator: torch.Generator) -> None:
    """What PEFT's ``save_pretrained`` writes, as far as anyone reads it."""
    adapter.path.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": ALPHA * adapter.rank,
        "target_modules": list(MODULES),
        "bias": "none",
    }
    (adapter.path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, weight in weights.items():
        num_out, num_in = weight.shape
        a = torch.randn(adapter.rank, num_in, generator=generator) / num_in**0.5
        b = torch.randn(num_out, adapter.rank, generator=generator)
        b *= SCALE * weight.norm() / (ALPHA * (b @ a).norm())
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, adapter.path / "adapter_model.safetensors")


class BatchedReference:
    """transformers in float32, with the adapter of each row put on by its definition."""

    def __init__(self, model_dir: Path) -> None:
        self._base = load_base(model_dir).eval()
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name in _targets(self._base):
            self._base.get_submodule(name).register_forward_hook(self._hook(name))

    @torch.inference_mode()
    def next_logits(self, adapters: Sequence[TinyAdapter], tokens: Sequence[list[int]]) -> Tensor:
        """[rows, tokens, vocabulary] of sequences of one length, each with its own adapter."""
        files = [load_file(adapter.path / "adapter_model.safetensors") for adapter in adapters]
        for name in _targets(self._base):
            a = [file[f"base_model.model.{name}.lora_A.weight"] for file in files]
            b = [file[f"base_model.model.{name}.lora_B.weight"].t() for file in files]
            self._pairs[name] = (_padded(a).mT, _padded(b))
        logits: Tensor = self._base(torch.tensor(list(tokens))).logits
        return logits

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            a, b = self._pairs[name]
            return output + ALPHA * (inputs[0] @ a @ b)

        return add


def _padded(matrices: list[Tensor]) -> Tensor:
    """[rows, most ranks, width]: the missing ranks are zero."""
    return nn.utils.rnn.pad_sequence(matrices, batch_first=True)
