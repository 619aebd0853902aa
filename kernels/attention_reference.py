"""Paged attention in plain PyTorch: the CPU backend and the oracle of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .metadata import AttentionMetadata


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention of this step's queries over their requests' cached keys.

    ``q`` [T, Hq, D]; ``k_cache``, ``v_cache`` [num_blocks, block_size, Hkv, D], which hold
    this step's keys already. A query at position p sees keys (p - sliding_window, p].
    ``soft_cap`` c turns scores s into c * tanh(s / c) (Gemma 2). Returns [T, Hq, D].
    """
    out = torch.empty_like(q)
    num_decodes = attention.num_decodes
    if num_decodes:
        out[:num_decodes] = _decode(
            q[:num_decodes], k_cache, v_cache, attention, scale, sliding_window, soft_cap
        )
    start = num_decodes
    for index in range(num_decodes, len(attention.query_lens)):
        end = start + attention.query_lens[index]
        length = attention.seq_lens_host[index]
        table = attention.block_tables[index]
        keys = _gather(k_cache, table, length)
        values = _gather(v_cache, table, length)
        out[start:end] = _chunk(q[start:end], keys, values, scale, sliding_window, soft_cap)
        start = end
    return out


def _gather(cache: Tensor, table: Tensor, length: int) -> Tensor:
    """One request's keys or values in order: [length, Hkv, D]."""
    num_blocks = -(-length // cache.shape[1])
    return cache.index_select(0, table[:num_blocks]).flatten(0, 1)[:length]


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """One query a request; a KV head's query heads are its rows, so K is read once."""
    rows, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[2]
    longest = max(attention.seq_lens_host[:rows])
    width = -(-longest // k_cache.shape[1])
    tables = attention.block_tables[:rows, :width].flatten()
    shape = (rows, width * k_cache.shape[1], num_kv_heads, head_dim)
    keys = k_cache.index_select(0, tables).view(shape).transpose(1, 2)
    values = v_cache.index_select(0, tables).view(shape).transpose(1, 2)
    mask = _decode_mask(attention, rows, shape[1], sliding_window, q.dtype)
    grouped = q.view(rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    return _attend(grouped, keys, values, mask, scale, soft_cap).reshape(q.shape)


def _decode_mask(
    attention: AttentionMetadata, rows: int, width: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    mask = attention.decode_masks.get(window)
    if mask is None:
        position = torch.arange(width, device=attention.seq_lens.device)
        length = attention.seq_lens[:rows, None]
        hidden = position >= length
        if window is not None:
            hidden |= position < length - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None, :]
        attention.decode_masks[window] = mask
    return mask


def _chunk(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """A prompt chunk [Tq, Hq, D] over its request's keys [L, Hkv, D], the last Tq its own."""
    num_queries, num_keys = q.shape[0], keys.shape[0]
    whole = num_queries == num_keys
    windowed = sliding_window is not None and num_keys > sliding_window
    q4, k4, v4 = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    if whole and not windowed and soft_cap is None:
        attended = scaled_dot_product_attention(
            q4, k4, v4, is_causal=True, scale=scale, enable_gqa=q4.shape[1] != k4.shape[1]
        )
        return attended[0].transpose(0, 1)
    position = torch.arange(num_keys, device=q.device)
    query_position = position[num_keys - num_queries :, None]
    hidden = position > query_position
    if windowed:
        assert sliding_window is not None
        hidden |= position <= query_position - sliding_window
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device)
    mask.masked_fill_(hidden, float("-inf"))
    if k4.shape[1] != q4.shape[1]:
        repeats = q4.shape[1] // k4.shape[1]
        k4, v4 = k4.repeat_interleave(repeats, 1), v4.repeat_interleave(repeats, 1)
    return _attend(q4, k4, v4, mask, scale, soft_cap)[0].transpose(0, 1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    if soft_cap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = torch.tanh(scores / soft_cap) * soft_cap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v
