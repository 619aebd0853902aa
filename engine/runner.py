"""Runs the decoder over one batch, against the KV pool it owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import ops
from .batch import StepBatch
from .models.decoder import Decoder


class ModelRunner:
    """The decoder and its KV pool [num_layers, 2, num_blocks, block_size, Hkv, D]."""

    def __init__(self, decoder: Decoder, num_blocks: int, block_size: int) -> None:
        config = decoder.config
        shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self._decoder = decoder
        self._pool = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self._kv_caches = [ops.KvCache(layer[0], layer[1]) for layer in self._pool]

    @property
    def kv_pool(self) -> Tensor:
        """The pool; only for copies of blocks that no step uses."""
        return self._pool

    def execute(
        self,
        batch: StepBatch,
        zero_block_ids: Sequence[int] = (),
        previous_token_ids: Tensor | None = None,
    ) -> Tensor:
        """One step, in inference mode -> float32 logits [N, vocab], a row a sampling request.

        ``previous_token_ids`` [N of the step before] are what it sampled, for a batch that follows.
        """
        if batch.follows is not None:
            assert previous_token_ids is not None
            rows, samples = batch.follows
            batch.input_ids.index_copy_(0, rows, previous_token_ids.index_select(0, samples))
        if zero_block_ids:
            blocks = torch.tensor(zero_block_ids, device=self._pool.device)
            self._pool.index_fill_(2, blocks, 0)
        hidden = self._decoder.forward(
            batch.input_ids,
            batch.positions,
            self._kv_caches,
            batch.slot_mapping,
            batch.attention,
            batch.lora,
        )
        return self._decoder.logits(hidden.index_select(0, batch.logits_indices), batch.lora)
