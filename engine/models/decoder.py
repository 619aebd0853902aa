"""The one decoder of all supported architectures: tokens to hidden states to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import ops
from ...lora.layers import StepLora
from .config import ModelConfig
from .layer import DecoderLayer, LayerWeights, StepInputs
from .rope import rope_table


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All parameters; ``lm_head`` is ``embedding`` itself where the two are tied and
    no packed layout is wanted for it."""

    embedding: Tensor  # [vocab, H]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [H]
    lm_head: Tensor  # [vocab, H]


class Decoder:
    """A model on its device, stateless: the KV cache is the caller's."""

    def __init__(
        self, config: ModelConfig, weights: DecoderWeights, max_model_len: int | None = None
    ) -> None:
        """``max_model_len`` bounds the positions (default: the model's own limit)."""
        self.config = config
        self.max_model_len = max_model_len or config.max_position_embeddings
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._weights = weights
        self._layers = tuple(
            DecoderLayer(index, config, facts, layer_weights)
            for index, (facts, layer_weights) in enumerate(
                zip(config.layers, weights.layers, strict=True)
            )
        )
        # The norm behind each layer: the next layer's first, in the end the final one.
        self._next_norms = (
            *(layer.attention_norm for layer in weights.layers[1:]),
            weights.final_norm,
        )
        self._rope_tables = tuple(
            rope_table(rope, self.max_model_len, self.dtype, self.device) for rope in config.ropes
        )
        # transformers rounds Gemma's embedding scale to the model's dtype.
        scale = config.embedding_scale
        self._embedding_scale = None if scale is None else torch.tensor(scale, dtype=self.dtype)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        slot_mapping: Tensor,
        attention: ops.AttentionMetadata,
        lora: StepLora | None,
    ) -> Tensor:
        """Run the step's T tokens and write their keys and values -> normed hidden [T, H].

        ``input_ids``, ``positions``, ``slot_mapping`` [T] int64; ``kv_caches`` holds one
        (keys, values) pair [num_blocks, block_size, Hkv, D] a layer.
        """
        step = StepInputs(self._ropes(positions), slot_mapping, attention, lora)
        eps, offset = self.config.rms_norm_eps, self.config.norm_offset
        residual = self.embed(input_ids)
        x = ops.rms_norm(residual, self._weights.layers[0].attention_norm, eps, offset)
        for layer, kv_cache, next_norm in zip(
            self._layers, kv_caches, self._next_norms, strict=True
        ):
            weights = layer.weights
            x = layer.attend(x, kv_cache, step)
            if weights.attention_output_norm is not None:
                x = ops.rms_norm(x, weights.attention_output_norm, eps, offset)
            x, residual = ops.fused_add_rms_norm(x, residual, weights.mlp_norm, eps, offset)
            x = layer.feed_forward(x, step)
            if weights.mlp_output_norm is not None:
                x = ops.rms_norm(x, weights.mlp_output_norm, eps, offset)
            x, residual = ops.fused_add_rms_norm(x, residual, next_norm, eps, offset)
        return x

    def embed(self, input_ids: Tensor) -> Tensor:
        """``input_ids`` [T] -> what enters the first layer [T, H]."""
        hidden = F.embedding(input_ids, self._weights.embedding)
        return hidden if self._embedding_scale is None else hidden.mul_(self._embedding_scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """``hidden`` [N, H] from ``forward`` -> float32 logits [N, vocab], soft-capped."""
        logits = ops.linear(hidden, self._weights.lm_head).float()
        cap = self.config.logit_soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _ropes(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """cos and sin of the step's positions as ``ops.apply_rope`` wants them, by rope."""
        ropes = []
        for table in self._rope_tables:
            cos, sin = table.index_select(1, positions)
            sin[:, : sin.shape[1] // 2].neg_()
            ropes.append((cos, sin))
        return tuple(ropes)
