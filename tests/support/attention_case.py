"""Requests whose keys lie scattered in a poisoned cache, and what attention is in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.kv_cache import FP8, quantize_rows


@dataclass(frozen=True)
class AttentionCase:
    """A step; ``keys``, ``values`` [L, Hkv, D] of each request are as the cache holds them."""

    q: Tensor  # [T, Hq, D]
    cache: ops.KvCache
    attention: ops.AttentionMetadata
    keys: list[Tensor]
    values: list[Tensor]

    def run(self, scale: float, window: int | None = None, cap: float | None = None) -> Tensor:
        """What the backend says, in float64 on the host."""
        out = ops.paged_attention(self.q, self.cache, self.attention, scale, window, cap)
        assert out.shape == self.q.shape
        assert out.dtype == self.q.dtype
        assert out.is_contiguous()
        return out.double().cpu()

    def expected(self, scale: float, window: int | None = None, cap: float | None = None) -> Tensor:
        """What the formula says."""
        queries = self.q.cpu().split(list(self.attention.query_lens))
        rows = zip(queries, self.keys, self.values, strict=True)
        return torch.cat([dense(q, k, v, scale, window, cap) for q, k, v in rows])


def dense(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, cap: float | None
) -> Tensor:
    """One request in float64: q [Tq, Hq, D], k and v [L, Hkv, D], queries last."""
    q, k, v = q.double(), k.double(), v.double()
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    key = torch.arange(k.shape[0])
    query = key[-q.shape[0] :, None]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def attention_case(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    heads: tuple[int, int],
    *,
    head_dim: int = 16,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
    poison: float = math.nan,
    device: torch.device | str = "cpu",
) -> AttentionCase:
    """Random keys in shuffled blocks; all else in the cache, block 0 too, is ``poison``.

    Queries are a part of wider rows, as those of a qkv projection are.
    """
    generator = torch.Generator().manual_seed(0)
    num_heads, num_kv_heads = heads
    num_blocks = sum(-(-n // block_size) for n in seq_lens) + 3
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    stored = fp8_cache(shape) if fp8 else full_cache(shape, dtype, poison)
    free = iter((torch.randperm(num_blocks - 1, generator=generator) + 1).tolist())
    tables, keys, values = [], [], []
    for seq_len in seq_lens:
        table = list(itertools.islice(free, -(-seq_len // block_size)))
        k, v = torch.randn(2, seq_len, num_kv_heads, head_dim, generator=generator).to(dtype)
        position = torch.arange(seq_len)
        slots = torch.tensor(table)[position // block_size] * block_size + position % block_size
        ops.kv_write(k, v, stored, slots)
        tables.append(table)
        keys.append(rounded(k) if fp8 else k)
        values.append(rounded(v) if fp8 else v)
    rows = torch.randn(sum(query_lens), num_heads + 2, head_dim, generator=generator)
    tensors = (stored.keys, stored.values, stored.key_scales, stored.value_scales)
    return AttentionCase(
        q=rows.to(dtype).to(device)[:, :num_heads],
        cache=ops.KvCache(*(x if x is None else x.to(device) for x in tensors)),
        attention=ops.build_attention_metadata(tables, query_lens, seq_lens, device),
        keys=keys,
        values=values,
    )


def full_cache(shape: tuple[int, ...], dtype: torch.dtype, poison: float) -> ops.KvCache:
    """A cache of nothing but ``poison``."""
    return ops.KvCache(*(torch.full(shape, poison, dtype=dtype) for _ in range(2)))


def fp8_cache(shape: tuple[int, int, int, int]) -> ops.KvCache:
    """A cache of NaNs, each block's scales behind its rows."""
    num_blocks, block_size, num_kv_heads, head_dim = shape
    num_scales = block_size * num_kv_heads
    size = num_scales * head_dim + 4 * num_scales
    size += -size % 16

    def part() -> tuple[Tensor, Tensor]:
        pool = torch.full((num_blocks, size), 0xFF, dtype=torch.uint8)  # NaN in both formats
        rows = pool[:, : num_scales * head_dim].view(FP8)
        behind = pool.view(torch.float32)[:, num_scales * head_dim // 4 :][:, :num_scales]
        strides = (size, num_kv_heads * head_dim, head_dim, 1)
        scale_strides = (size // 4, num_kv_heads, 1)
        offset = behind.storage_offset()
        return rows.as_strided(shape, strides), behind.as_strided(shape[:3], scale_strides, offset)

    (keys, key_scales), (values, value_scales) = part(), part()
    return ops.KvCache(keys, values, key_scales, value_scales)


def rounded(rows: Tensor) -> Tensor:
    """``rows`` as an 8 bit cache holds them, in float64."""
    quantized, scales = quantize_rows(rows)
    return quantized.double() * scales.double().unsqueeze(-1)
