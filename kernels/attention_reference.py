"""Paged attention in plain PyTorch: the CPU backend and the oracle of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .kv_cache import KvCache
from .metadata import AttentionMetadata, DecodeGroup

CHUNK_QUERIES = 256
"""Queries of a prompt chunk that meet the keys at once where scores or a mask are laid out."""


def paged_attention(
    q: Tensor,
    cache: KvCache,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention of this step's queries over their requests' cached keys.

    ``q`` [T, Hq, D]; ``cache`` holds this step's keys already. A query at position p sees keys
    (p - sliding_window, p].
    ``soft_cap`` c turns scores s into c * tanh(s / c) (Gemma 2). Returns [T, Hq, D].
    """
    out = torch.empty_like(q)
    decodes = q[: attention.num_decodes]
    for group in attention.decode_groups:
        picked = decodes if group.rows is None else decodes.index_select(0, group.rows)
        attended = _decode(picked, cache, attention, group, scale, sliding_window, soft_cap)
        if group.rows is None:
            out[: attention.num_decodes] = attended
        else:
            out.index_copy_(0, group.rows, attended)
    start = attention.num_decodes
    for index in range(attention.num_decodes, len(attention.query_lens)):
        end = start + attention.query_lens[index]
        length = attention.seq_lens_host[index]
        table = attention.block_tables[index]
        num_blocks = -(-length // cache.block_size)
        keys, values = (
            blocks.flatten(0, 1)[:length] for blocks in _read(cache, table[:num_blocks], q.dtype)
        )
        _chunk(q[start:end], keys, values, out[start:end], scale, sliding_window, soft_cap)
        start = end
    return out


def _read(cache: KvCache, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The keys and values of ``blocks`` [n]: [n, block_size, Hkv, D] each."""
    if cache.key_scales is None or cache.value_scales is None:
        return cache.keys.index_select(0, blocks), cache.values.index_select(0, blocks)
    blocks = blocks.long()
    keys, values = (
        (stored[blocks].float() * scales[blocks].unsqueeze(-1)).to(dtype)
        for stored, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    )
    return keys, values


def _decode(
    q: Tensor,
    cache: KvCache,
    attention: AttentionMetadata,
    group: DecodeGroup,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """One query a request; a KV head's query heads are its rows, so K is read once."""
    rows, num_heads, head_dim = q.shape
    num_kv_heads = cache.keys.shape[2]
    tables = _rows_of(attention.block_tables, group, rows)[:, : group.num_blocks].flatten()
    shape = (rows, group.num_blocks * cache.block_size, num_kv_heads, head_dim)
    keys, values = (read.view(shape).transpose(1, 2) for read in _read(cache, tables, q.dtype))
    mask = None if group.masks is None else group.masks.get(sliding_window)
    if mask is None:
        seq_lens = _rows_of(attention.seq_lens, group, rows)
        mask = _decode_mask(seq_lens, shape[1], sliding_window, q.dtype)
        if group.masks is not None:
            group.masks[sliding_window] = mask
    grouped = q.view(rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    attended = _attend(grouped, keys, values, mask, scale, soft_cap).reshape(q.shape)
    if group.masks is None:  # rows of padding, perhaps
        attended.masked_fill_((attention.seq_lens[:rows] == 0)[:, None, None], 0.0)
    return attended


def _rows_of(tensor: Tensor, group: DecodeGroup, num_rows: int) -> Tensor:
    return tensor[:num_rows] if group.rows is None else tensor.index_select(0, group.rows)


def _decode_mask(seq_lens: Tensor, width: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[rows, 1, 1, width]: 0 where a row's query sees, -inf elsewhere."""
    position = torch.arange(width, device=seq_lens.device)
    length = seq_lens[:, None]
    hidden = position >= length
    if window is not None:
        hidden |= position < length - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))[:, None, None, :]


def _chunk(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """A prompt chunk [Tq, Hq, D] over its request's keys [L, Hkv, D], the last Tq its own."""
    num_queries, num_keys = q.shape[0], keys.shape[0]
    windowed = sliding_window is not None and num_keys > sliding_window
    q4, k4, v4 = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    if num_queries == num_keys and not windowed and soft_cap is None:
        attended = scaled_dot_product_attention(
            q4, k4, v4, is_causal=True, scale=scale, enable_gqa=q4.shape[1] != k4.shape[1]
        )
        out.copy_(attended[0].transpose(0, 1))
        return
    repeats = q4.shape[1] // k4.shape[1]
    if repeats > 1:
        k4, v4 = k4.repeat_interleave(repeats, 1), v4.repeat_interleave(repeats, 1)
    # Piece by piece, so that scores and masks stay small and no piece meets keys behind it.
    for first in range(0, num_queries, CHUNK_QUERIES):
        last = min(first + CHUNK_QUERIES, num_queries)
        stop = num_keys - num_queries + last
        start = 0 if sliding_window is None else max(0, stop - (last - first) - sliding_window + 1)
        mask = _chunk_mask(last - first, stop - start, sliding_window, q)
        pieces = q4[:, :, first:last], k4[:, :, start:stop], v4[:, :, start:stop]
        out[first:last] = _attend(*pieces, mask, scale, soft_cap)[0].transpose(0, 1)


def _chunk_mask(num_queries: int, num_keys: int, window: int | None, like: Tensor) -> Tensor:
    """[Tq, L]: the queries are the last of the keys' positions."""
    position = torch.arange(num_keys, device=like.device)
    query_position = position[num_keys - num_queries :, None]
    hidden = position > query_position
    if window is not None:
        hidden |= position <= query_position - window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, float("-inf"))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    if soft_cap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = torch.tanh(scores / soft_cap) * soft_cap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v
