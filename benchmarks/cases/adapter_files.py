"""A small random Llama and as many adapters for it as wanted, in PEFT's files, in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from branchline.benchmarks.peers.model import tokenizer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
PAGE_RANK = 16
BASE_STD, DELTA_STD = 0.02, 0.01
"""Of the base's weights (transformers' default) and of what an adapter adds to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The base: a Llama of heads of 64."""

    hidden_size: int = 256
    intermediate_size: int = 640
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 2000

    @property
    def name(self) -> str:
        """In the words of a results file."""
        return (
            f"random Llama: hidden {self.hidden_size}, {self.num_layers} layers, "
            f"vocab {self.vocab_size}, float32"
        )

    def features(self, module: str) -> tuple[int, int]:
        """What a linear takes and gives."""
        hidden, kv = self.hidden_size, 64 * self.num_kv_heads
        return {
            "q_proj": (hidden, 64 * self.num_heads),
            "k_proj": (hidden, kv),
            "v_proj": (hidden, kv),
            "o_proj": (64 * self.num_heads, hidden),
            "gate_proj": (hidden, self.intermediate_size),
            "up_proj": (hidden, self.intermediate_size),
            "down_proj": (self.intermediate_size, hidden),
        }[module]


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The rank of an adapter, and the linears it changes."""

    rank: int
    modules: tuple[str, ...]

    @property
    def num_pages(self) -> int:
        """Pages of 16 ranks that it takes of a group it changes."""
        return -(-self.rank // PAGE_RANK)

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank}, {'attention' if self.modules == ATTENTION else 'all linears'}"


_RANKS = (8, 16, 4, 32, 16, 8, 64, 16)

SHAPES = tuple(
    AdapterShape(rank, (ATTENTION, LINEARS)[(number + half) % 2])
    for half in (0, 1)
    for number, rank in enumerate(_RANKS)
)
"""Adapter number n has shape n modulo 16: each of the ranks on attention and on all linears."""


def shape_of(number: int) -> AdapterShape:
    """The shape of an adapter by its number."""
    return SHAPES[number % len(SHAPES)]


def make_model(directory: Path, size: ModelSize) -> Path:
    """Write the base with its tokenizer; returns ``directory``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        head_dim=64,
        initializer_range=BASE_STD,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer(size.vocab_size).save_pretrained(directory)
    return directory


def write_adapter(directory: Path, size: ModelSize, shape: AdapterShape, seed: int) -> Path:
    """Write a random adapter in bfloat16 under PEFT's names; returns ``directory``."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(_tensors(size, shape, generator))
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "random-llama",
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "target_modules": list(shape.modules),
        "bias": "none",
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def _tensors(
    size: ModelSize, shape: AdapterShape, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    for layer in range(size.num_layers):
        for module in shape.modules:
            part = "self_attn" if module in ATTENTION else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{module}"
            inputs, outputs = size.features(module)
            # Values of B A, times alpha / r = 2, then have the standard deviation wanted.
            b_std = DELTA_STD / 2 * (inputs / shape.rank) ** 0.5
            a = torch.randn(shape.rank, inputs, generator=generator) / inputs**0.5
            b = torch.randn(outputs, shape.rank, generator=generator) * b_std
            yield f"{prefix}.lora_A.weight", a.bfloat16()
            yield f"{prefix}.lora_B.weight", b.bfloat16()


@dataclass(frozen=True, slots=True)
class AdapterStore:
    """A directory of numbered adapters, each written when it is first asked for."""

    root: Path
    size: ModelSize

    def path(self, number: int) -> Path:
        """The directory of an adapter."""
        path = self.root / f"adapter{number:04}"
        return path if path.exists() else write_adapter(path, self.size, shape_of(number), number)
