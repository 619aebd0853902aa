"""The largest step there can be, run once before there is a KV pool, to see what it takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .batch import send_batch
from .blocks import NUM_RESERVED_BLOCKS, SCRAP_BLOCK
from .models.decoder import Decoder
from .runner import ModelRunner
from .step_layout import StepAdapters, StepLayout


def profile_run(
    decoder: Decoder,
    block_size: int,
    num_tokens: int,
    num_seqs: int,
    kv_dtype: torch.dtype | None = None,
) -> Tensor:
    """A step of ``num_tokens``, in inference mode -> float32 logits [num_seqs, vocab].

    All but one of the requests have one token, the last has the rest, as long as the model
    allows; every row's keys go to the scrap block, so that a pool of no more blocks does.
    """
    runner = ModelRunner(decoder, NUM_RESERVED_BLOCKS, block_size, kv_dtype)
    layout = largest_step(num_tokens, num_seqs, block_size, decoder.max_model_len)
    return runner.execute(send_batch(layout, None, decoder.device))


def largest_step(num_tokens: int, num_seqs: int, block_size: int, max_model_len: int) -> StepLayout:
    """Every request samples; prompts start at their first token."""
    num_seqs = min(num_seqs, num_tokens)
    rest = num_tokens - (num_seqs - 1)
    query_lens = [1] * (num_seqs - 1)
    while rest > 0:
        query_lens.append(min(rest, max_model_len))
        rest -= query_lens[-1]
    ends = np.cumsum(query_lens)
    num_requests = len(query_lens)
    nobody: list[int | None] = [None] * num_requests
    return StepLayout(
        input_ids=np.zeros(num_tokens, dtype=np.int64),
        positions=np.concatenate([np.arange(length) for length in query_lens]),
        slot_mapping=np.full(num_tokens, SCRAP_BLOCK * block_size, dtype=np.int64),
        logits_indices=ends[-num_seqs:] - 1,
        follows=np.empty((2, 0), dtype=np.int64),
        zero_block_ids=np.empty(0, dtype=np.int64),
        query_lens=query_lens,
        seq_lens=query_lens,
        block_tables=[[SCRAP_BLOCK] * -(-length // block_size) for length in query_lens],
        samples=[True] * num_requests,
        adapters=StepAdapters(nobody, nobody, query_lens),
    )
