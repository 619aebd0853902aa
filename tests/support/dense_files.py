"""Small adapters with dense parts, tensor by tensor, and the base that they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from branchline.lora.adapter import AdapterConfig
from branchline.lora.loader import load_adapter
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import AdapterWeights

HIDDEN, VOCAB = 16, 10
Tensors = dict[str, torch.Tensor]
PREFIX = "base_model.model."
Q = f"{PREFIX}model.layers.0.self_attn.q_proj"
EMBED, HEAD = f"{PREFIX}model.embed_tokens", f"{PREFIX}lm_head"
NORM = f"{PREFIX}model.layers.0.input_layernorm.weight"


def shapes(tied: bool = False) -> ModuleShapes:
    return ModuleShapes.for_decoder(
        num_layers=1,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=VOCAB,
        tied=tied,
    )


def base_tensors() -> Tensors:
    torch.manual_seed(0)
    layer = "model.layers.0"
    return {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN),
        "lm_head.weight": torch.randn(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
        f"{layer}.input_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}.post_attention_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}.self_attn.q_proj.weight": torch.randn(HIDDEN, HIDDEN),
        f"{layer}.self_attn.q_proj.bias": torch.randn(HIDDEN),
    }


def pair() -> Tensors:
    return {f"{Q}.lora_A.weight": torch.ones(4, HIDDEN), f"{Q}.lora_B.weight": torch.ones(16, 4)}


def embedding_pair(rows: int = VOCAB) -> Tensors:
    a, b = torch.ones(4, rows), torch.ones(HIDDEN, 4)
    return {f"{EMBED}.lora_embedding_A": a, f"{EMBED}.lora_embedding_B": b}


def head_pair() -> Tensors:
    return {
        f"{HEAD}.lora_A.weight": torch.ones(4, HIDDEN),
        f"{HEAD}.lora_B.weight": torch.ones(VOCAB, 4),
    }


def table(rows: int = VOCAB, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def load(
    directory: Path,
    tensors: Tensors,
    tied: bool = False,
    base: Mapping[str, torch.Tensor] | None = None,
    **fields: Any,
) -> AdapterWeights:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], **fields}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    parsed = AdapterConfig.from_directory(directory)
    base = base_tensors() if base is None else base
    return load_adapter(directory, parsed, shapes(tied), base.get)


def rows(count: int, module: str = EMBED) -> Tensors:
    return {f"{module}.token_adapter.trainable_tokens_delta": torch.ones(count, HIDDEN)}
