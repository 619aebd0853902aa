"""Random checkpoints of a given shape, written as a user's would be: config and safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from branchline.kernels.backend import interprets

PREFIX = "base_model.model.model.layers"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama, or of a Qwen3 where ``qk_norm``."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool = True
    qk_norm: bool = False

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) features of each linear of a layer, by its path in the checkpoint."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }


ONE_BILLION = Shape("Llama-3.2-1B", 2048, 16, 32, 8, 64, 8192, 128_256)
EIGHT_BILLION = Shape("Llama-3.1-8B", 4096, 32, 32, 8, 128, 14336, 128_256, tied=False)
QWEN = Shape("Qwen3-8B", 4096, 36, 32, 8, 128, 12288, 151_936, tied=False, qk_norm=True)
TINY = Shape("tiny", 64, 2, 4, 2, 16, 160, 512)
LEAST = Shape("least", 32, 1, 2, 1, 16, 48, 64)
SHAPES = {"8b": EIGHT_BILLION, "qwen3-8b": QWEN, "1b": ONE_BILLION, "tiny": TINY}


def shape_of(name: str) -> Shape:
    """By the name it is asked for; what an interpreter runs is smaller still."""
    return LEAST if interprets() and name == "tiny" else SHAPES[name]


def write_model(shape: Shape, directory: Path, dtype: torch.dtype) -> Path:
    """A base model of random weights."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).mul_(size[-1] ** -0.5).to(dtype)

    tensors = {"model.embed_tokens.weight": draw(shape.vocab_size, shape.hidden_size)}
    tensors["model.norm.weight"] = torch.ones(shape.hidden_size, dtype=dtype)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = torch.ones(shape.hidden_size, dtype=dtype)
        for linear, size in shape.linears.items():
            tensors[f"{name}.{linear}.weight"] = draw(*size)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return write_config(shape, directory, dtype)


def write_config(shape: Shape, directory: Path, dtype: torch.dtype) -> Path:
    """What a checkpoint says of itself; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_config(shape, dtype)))
    return directory


def _config(shape: Shape, dtype: torch.dtype) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def write_adapter(shape: Shape, directory: Path, rank: int, seed: int) -> Path:
    """A PEFT adapter of random weights on all linears, strong enough to change the tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(shape.num_layers):
        for linear, (out_features, in_features) in shape.linears.items():
            name = f"{PREFIX}.{layer}.{linear}"
            a = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
            b = torch.randn(out_features, rank, generator=generator) * (0.3 * rank**-0.5)
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted(linear.rpartition(".")[2] for linear in shape.linears)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    config |= {"target_modules": targets, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
