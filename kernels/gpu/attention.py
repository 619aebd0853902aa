"""Paged attention of a mixed step: its decodes in one launch, its prompts' chunks in another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kv_cache import KvCache
from ..metadata import AttentionMetadata
from .attention_decode import decode_attention
from .attention_prefill import prefill_attention


def paged_attention(
    q: Tensor,
    cache: KvCache,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """softmax(cap(q k^T scale)) v over the keys up to each query, those in its window.

    ``q`` [T, Hq, D], its rows contiguous; returns [T, Hq, D]. Nothing waits for the device, and
    all that a captured graph's replays change is read there.
    """
    assert q.stride(-1) == 1
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if attention.num_decodes:
        decode_attention(out, q, cache, attention, scale, sliding_window, soft_cap)
    if len(attention.query_lens) > attention.num_decodes:
        prefill_attention(out, q, cache, attention, scale, sliding_window, soft_cap)
    return out
