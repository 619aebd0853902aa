"""The door of attention: Triton's kernels where they run, else the twin."""

from __future__ import annotations

from torch import Tensor

from . import attention_reference
from .backend import uses_kernels
from .kv_cache import KvCache
from .metadata import AttentionMetadata


def paged_attention(
    q: Tensor,
    cache: KvCache,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention of queries [T, Hq, D] over their requests' cached keys -> [T, Hq, D]."""
    if uses_kernels(q):
        from .gpu.attention import paged_attention as kernel

        return kernel(q, cache, attention, scale, sliding_window, soft_cap)
    return attention_reference.paged_attention(q, cache, attention, scale, sliding_window, soft_cap)
