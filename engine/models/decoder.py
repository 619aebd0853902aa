"""The one decoder of all supported architectures: tokens to hidden states to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import ops
from ...lora.layers import Norm, StepLora, add_and_normalize, normalize
from ...lora.tables import embed, unembed
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
            DecoderLayer.build(index, config, layer) for index, layer in enumerate(weights.layers)
        )
        final = Norm(weights.final_norm, config.rms_norm_eps, config.norm_offset, "final_norm")
        # The norm behind each layer: the next layer's first, in the end the final one.
        self._next_norms = (*(layer.norms["attention_norm"] for layer in self._layers[1:]), final)
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
        kv_caches: Sequence[ops.KvCache],
        slot_mapping: Tensor,
        attention: ops.AttentionMetadata,
        lora: StepLora | None,
    ) -> Tensor:
        """Run the step's T tokens and write their keys and values -> normed hidden [T, H].

        ``input_ids``, ``positions``, ``slot_mapping`` [T] int64; ``kv_caches`` holds one a
        layer.
        """
        step = StepInputs(self._ropes(positions), slot_mapping, attention, lora)
        residual = self.embed(input_ids, lora)
        x = normalize(residual, self._layers[0].norms["attention_norm"], lora)
        for layer, kv_cache, next_norm in zip(
            self._layers, kv_caches, self._next_norms, strict=True
        ):
            norms = layer.norms
            x = layer.attend(x, kv_cache, step)
            if "attention_output_norm" in norms:
                x = normalize(x, norms["attention_output_norm"], lora)
            x, residual = add_and_normalize(x, residual, norms["mlp_norm"], lora)
            x = layer.feed_forward(x, step)
            if "mlp_output_norm" in norms:
                x = normalize(x, norms["mlp_output_norm"], lora)
            x, residual = add_and_normalize(x, residual, next_norm, lora)
        return x

    def embed(self, input_ids: Tensor, lora: StepLora | None = None) -> Tensor:
        """``input_ids`` [T] -> what enters the first layer [T, H]."""
        dense = None if lora is None else lora.dense
        routed = () if dense is None else dense.embeddings
        hidden = embed(input_ids, self._weights.embedding, routed)
        return hidden if self._embedding_scale is None else hidden.mul_(self._embedding_scale)

    def logits(self, hidden: Tensor, lora: StepLora | None = None) -> Tensor:
        """Rows of ``forward``'s result [N, H] -> float32 logits [N, vocab], soft-capped.

        ``lora`` is the step's, and the rows those that its plan samples. ``vocab`` is that of the
        row with the largest one; the others have -inf there.
        """
        dense = None if lora is None else lora.dense
        routed = () if dense is None else dense.heads
        return unembed(hidden, self._weights.lm_head, self.config.logit_soft_cap, routed)

    def _ropes(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """cos and sin of the step's positions as ``ops.rope_and_kv_write`` wants them, by rope."""
        ropes = []
        for table in self._rope_tables:
            cos, sin = table.index_select(1, positions)
            sin[:, : sin.shape[1] // 2].neg_()
            ropes.append((cos, sin))
        return tuple(ropes)
