"""Models of random weights, made where they are to run."""

from __future__ import annotations

import torch
from torch import Tensor

from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder, DecoderWeights
from branchline.engine.models.layer import LayerWeights
from branchline.kernels import ops


class RandomWeights:
    """Draws parameters whose products stay of one size; norms are all ones."""

    def __init__(self, dtype: torch.dtype, device: torch.device, is_fp8: bool = False) -> None:
        self._dtype = dtype
        self._device = device
        self._is_fp8 = is_fp8
        self._generator = torch.Generator(device).manual_seed(0)
        self.num_bytes = 0

    def matrix(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] as it is."""
        weight = torch.empty(rows, columns, dtype=self._dtype, device=self._device)
        return weight.normal_(0, columns**-0.5, generator=self._generator)

    def linear(self, rows: int, columns: int) -> ops.LinearWeight:
        """A weight that a step reads once, as the engine keeps it on this device."""
        weight = self.matrix(rows, columns)
        self.num_bytes += weight.numel() * (1 if self._is_fp8 else weight.itemsize)
        return ops.quantize_weight(weight) if self._is_fp8 else ops.pack_linear(weight)

    def ones(self, size: int) -> Tensor:
        """A norm's weight."""
        return torch.ones(size, dtype=self._dtype, device=self._device)

    def layer(self, config: ModelConfig) -> LayerWeights:
        """One decoder layer of a Llama or a Qwen3."""
        hidden, inner = config.hidden_size, config.intermediate_size
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        return LayerWeights(
            attention_norm=self.ones(hidden),
            qkv=self.linear(query + 2 * kv, hidden),
            qkv_bias=None,
            q_norm=self.ones(config.head_dim) if config.qk_norm else None,
            k_norm=self.ones(config.head_dim) if config.qk_norm else None,
            o=self.linear(hidden, query),
            o_bias=None,
            attention_output_norm=None,
            mlp_norm=self.ones(hidden),
            gate_up=self.linear(2 * inner, hidden),
            gate_up_bias=None,
            down=self.linear(hidden, inner),
            down_bias=None,
            mlp_output_norm=None,
        )


def random_decoder(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    is_fp8: bool = False,
) -> tuple[Decoder, int]:
    """A model, and the bytes of weights that a decode step has to read."""
    weights = RandomWeights(dtype, device, is_fp8)
    embedding = weights.matrix(config.vocab_size, config.hidden_size)
    layers = tuple(weights.layer(config) for _ in range(config.num_layers))
    head = embedding
    if not config.tie_word_embeddings:
        head = weights.matrix(config.vocab_size, config.hidden_size)
    decoder = Decoder(
        config,
        DecoderWeights(
            embedding=embedding,
            layers=layers,
            final_norm=weights.ones(config.hidden_size),
            lm_head=ops.pack_linear(head),
        ),
        max_model_len,
    )
    return decoder, weights.num_bytes + head.nbytes
