"""One decoder layer: its weights and its two halves, attention and MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...kernels import ops
from ...lora.layers import Norm, StepLora, normalize, project
from .config import LayerConfig, ModelConfig

NORMS = (
    "attention_norm",
    "q_norm",
    "k_norm",
    "attention_output_norm",
    "mlp_norm",
    "mlp_output_norm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """H hidden, I intermediate, Q and K the widths of all query and all key heads, D head_dim.

    ``attention_norm`` and ``mlp_norm`` come before each half; the ``*_output_norm`` after it
    (Gemma only). The linears' weights may be in 8 bits.
    """

    attention_norm: Tensor  # [H]
    qkv: ops.LinearWeight  # [Q + 2K, H]
    qkv_bias: Tensor | None  # [Q + 2K]
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: ops.LinearWeight  # [H, Q]
    o_bias: Tensor | None  # [H]
    attention_output_norm: Tensor | None  # [H]
    mlp_norm: Tensor  # [H]
    gate_up: ops.LinearWeight  # [2I, H]
    gate_up_bias: Tensor | None  # [2I]
    down: ops.LinearWeight  # [H, I]
    down_bias: Tensor | None  # [H]
    mlp_output_norm: Tensor | None  # [H]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What all layers of a step share: slots [T], requests, cos and sin [T, R] by rope.

    ``sin`` has its first half negated, as ``ops.rope_and_kv_write`` wants it.
    """

    ropes: tuple[tuple[Tensor, Tensor], ...]
    slot_mapping: Tensor
    attention: ops.AttentionMetadata
    lora: StepLora | None


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """A layer ready to run at its place ``index`` in the stack.

    ``norms`` are those that it has, by their names in ``LayerWeights``.
    """

    index: int
    config: ModelConfig
    facts: LayerConfig
    weights: LayerWeights
    norms: Mapping[str, Norm]

    @classmethod
    def build(cls, index: int, config: ModelConfig, weights: LayerWeights) -> DecoderLayer:
        """The layer at ``index`` of the model that ``config`` describes."""
        named = {name: getattr(weights, name) for name in NORMS}
        norms = {
            name: Norm(weight, config.rms_norm_eps, config.norm_offset, name, index)
            for name, weight in named.items()
            if weight is not None
        }
        return cls(index, config, config.layers[index], weights, norms)

    def attend(self, x: Tensor, kv_cache: ops.KvCache, step: StepInputs) -> Tensor:
        """Self-attention of normed ``x`` [T, H] over the paged cache -> [T, H]."""
        config, weights = self.config, self.weights
        qkv = project(x, weights.qkv, weights.qkv_bias, self.index, "qkv", step.lora)
        num_kv_heads = config.num_kv_heads
        heads = qkv.view(x.shape[0], -1, config.head_dim)
        q, k, v = heads.split_with_sizes((config.num_heads, num_kv_heads, num_kv_heads), dim=1)
        if "q_norm" in self.norms:
            q = normalize(q, self.norms["q_norm"], step.lora)
            k = normalize(k, self.norms["k_norm"], step.lora)
        rope = None if self.facts.rope is None else step.ropes[self.facts.rope]
        ops.rope_and_kv_write(q, k, v, rope, kv_cache, step.slot_mapping)
        attended = ops.paged_attention(
            q,
            kv_cache,
            step.attention,
            config.attention_scale,
            self.facts.sliding_window,
            config.attention_soft_cap,
        )
        return project(attended.flatten(1), weights.o, weights.o_bias, self.index, "o", step.lora)

    def feed_forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """Gated MLP of normed ``x`` [T, H] -> [T, H]."""
        weights, index, lora = self.weights, self.index, step.lora
        gate_up = project(x, weights.gate_up, weights.gate_up_bias, index, "gate_up", lora)
        hidden = ops.gated_activation(gate_up, self.config.activation)
        return project(hidden, weights.down, weights.down_bias, index, "down", lora)
