"""Runs the decoder over one batch, against the KV pool it owns."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import ops
from .batch import StepBatch
from .kv_layout import KvLayout
from .models.decoder import Decoder


class ModelRunner:
    """The decoder and its KV pool, laid out as ``KvLayout`` says, in the decoder's dtype or FP8."""

    def __init__(
        self,
        decoder: Decoder,
        num_blocks: int,
        block_size: int,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self.decoder = decoder
        self.layout = KvLayout(decoder.config, block_size, kv_dtype or decoder.dtype)
        self._pool = self.layout.allocate(num_blocks, decoder.device)
        self.kv_caches = self.layout.caches(self._pool)

    @property
    def kv_pool(self) -> Tensor:
        """The pool; only for copies of blocks that no step uses."""
        return self._pool

    def execute(self, batch: StepBatch, previous_token_ids: Tensor | None = None) -> Tensor:
        """One step, in inference mode -> float32 logits [N, vocab], a row a sampling request.

        ``previous_token_ids`` [N of the step before] are what it sampled, for a batch that follows.
        """
        self.prepare(batch.input_ids, batch.follows, batch.zero_blocks, previous_token_ids)
        return self.compute(batch)

    def hidden(self, batch: StepBatch, previous_token_ids: Tensor | None = None) -> Tensor:
        """As ``execute``, up to the final hidden states [T, hidden_size], normed."""
        self.prepare(batch.input_ids, batch.follows, batch.zero_blocks, previous_token_ids)
        return self._forward(batch)

    def prepare(
        self,
        input_ids: Tensor,
        follows: Tensor | None,
        zero_blocks: Tensor | None,
        previous_token_ids: Tensor | None,
    ) -> None:
        """What no two steps have alike: the tokens of the step before, and blocks to clear.

        Kernels never look behind a request's keys: what others left there is nothing to them.
        """
        if follows is not None:
            assert previous_token_ids is not None
            rows, samples = follows
            input_ids.index_copy_(0, rows, previous_token_ids.index_select(0, samples))
        if zero_blocks is not None and not ops.uses_kernels(self._pool):
            self._pool.index_fill_(2, zero_blocks, 0)

    def compute(self, batch: StepBatch) -> Tensor:
        """The step itself; with a batch that stays in its place it can be recorded and replayed."""
        return self.logits(self._forward(batch), batch)

    def _forward(self, batch: StepBatch) -> Tensor:
        return self.decoder.forward(
            batch.input_ids,
            batch.positions,
            self.kv_caches,
            batch.slot_mapping,
            batch.attention,
            batch.lora,
        )

    def logits(self, hidden: Tensor, batch: StepBatch) -> Tensor:
        """Float32 logits [N, vocab] of the rows that give a token."""
        if batch.logits_indices is not None:
            hidden = hidden.index_select(0, batch.logits_indices)
        return self.decoder.logits(hidden, batch.lora)
