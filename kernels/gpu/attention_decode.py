"""Attention of one query a request: split over the keys, one program for a KV head's queries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from ..kv_cache import KvCache
from ..metadata import AttentionMetadata
from .attention_blocks import count_splits, decode_blocks, power_of_two
from .attention_tiles import attend_tile, cache_constants, dot_dtype, load_rows, output_of


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_tables", "seq_lens"],
)
def decode_kernel(
    out,
    partial_out,
    partial_logs,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    block_tables,
    seq_lens,
    scale,
    table_stride,
    Q_STRIDE: tl.constexpr,
    Q_HEAD_STRIDE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALE_BLOCK_STRIDE: tl.constexpr,
    SCALE_TOKEN_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The program (KV head, split, request) of `decode_attention`."""
    kv_head, split, request = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_splits = tl.num_programs(1)
    length = tl.load(seq_lens + request)
    first = 0
    if WINDOW is not None:
        first = tl.maximum(length - WINDOW, 0)
    split_keys = tl.cdiv(tl.cdiv(length - first, BLOCK_N), num_splits) * BLOCK_N
    start = first + split * split_keys
    end = tl.minimum(start + split_keys, length)

    rows = tl.arange(0, BLOCK_M)
    is_head = rows < GROUP
    heads = kv_head * GROUP + rows
    q_rows = request * Q_STRIDE + heads * Q_HEAD_STRIDE
    queries = load_rows(q, q_rows, is_head, HEAD_DIM, BLOCK_D, True).to(DOT_DTYPE)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    keys += kv_head * HEAD_STRIDE
    values += kv_head * HEAD_STRIDE
    if HAS_SCALES:
        key_scales += kv_head
        value_scales += kv_head
    table = block_tables + request * table_stride
    for tile in range(start, end, BLOCK_N):
        positions = tile + tl.arange(0, BLOCK_N)
        seen = positions < end
        acc, peak, total = attend_tile(
            *(acc, peak, total, queries, keys, values, key_scales, value_scales),
            *(table, positions, seen, seen[None, :], scale, BLOCK_STRIDE, TOKEN_STRIDE),
            *(SCALE_BLOCK_STRIDE, SCALE_TOKEN_STRIDE, BLOCK_SIZE, HEAD_DIM, BLOCK_D),
            *(SOFT_CAP, DOT_DTYPE, HAS_SCALES, True),
        )

    result = output_of(acc, total, HAS_SCALES)
    columns = tl.arange(0, BLOCK_D)
    mask = is_head[:, None] & (columns < HEAD_DIM)[None, :]
    row = request * (tl.num_programs(0) * GROUP) + heads
    if IS_SPLIT:
        # log2 of a split's sum of exp2(score); -inf, and no result, where it has no keys.
        row = row * num_splits + split
        logs = peak + tl.log2(tl.where(total == 0.0, 1.0, total))
        tl.store(partial_logs + row, logs, mask=is_head)
        mask = mask & (end > start)
        tl.store(partial_out + row[:, None] * HEAD_DIM + columns[None, :], result, mask=mask)
    else:
        pointers = out + row[:, None] * HEAD_DIM + columns[None, :]
        tl.store(pointers, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def merge_kernel(
    out,
    partial_out,
    partial_logs,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The mean of a head's splits, weighted by their sums; zeros where all are empty."""
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    splits = row * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
    columns = tl.arange(0, BLOCK_D)
    logs = tl.load(partial_logs + splits)
    has_keys = logs > float("-inf")
    mask = has_keys[:, None] & (columns < HEAD_DIM)[None, :]
    parts = tl.load(partial_out + splits[:, None] * HEAD_DIM + columns[None, :], mask, 0.0)
    peak = tl.max(logs, 0)
    weights = tl.exp2(logs - tl.where(peak == float("-inf"), 0.0, peak))
    total = tl.sum(weights, 0)
    mean = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    pointers = out + row * HEAD_DIM + columns
    tl.store(pointers, mean.to(out.dtype.element_ty), mask=columns < HEAD_DIM)


def decode_attention(
    out: Tensor,
    q: Tensor,
    cache: KvCache,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """The first ``num_decodes`` rows of ``out``: each of ``q`` [B, Hq, D] over all its keys.

    Each request's keys are split evenly, so that few long requests fill the device too, and the
    splits' results merged (Flash-Decoding). ``out`` [T, Hq, D] is contiguous. A request with no
    key gets zeros.
    """
    num_decodes, (num_heads, head_dim) = attention.num_decodes, q.shape[1:]
    num_kv_heads = cache.keys.shape[2]
    group = num_heads // num_kv_heads
    blocks = decode_blocks(group, head_dim, q.itemsize, interprets())
    max_keys = attention.block_tables.shape[1] * cache.block_size
    if sliding_window is not None:
        max_keys = min(max_keys, sliding_window)
    splits = count_splits(num_decodes, num_kv_heads, max_keys, blocks.keys)
    partial_out = partial_logs = None
    if splits > 1:
        shape = (num_decodes, num_heads, splits)
        partial_logs = torch.empty(shape, dtype=torch.float32, device=q.device)
        partial_out = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
    block_dim = power_of_two(head_dim)
    decode_kernel[(num_kv_heads, splits, num_decodes)](
        *(out, partial_out, partial_logs, q, cache.keys, cache.values),
        *(cache.key_scales, cache.value_scales, attention.block_tables, attention.seq_lens),
        *(scale, attention.block_tables.stride(0), q.stride(0), q.stride(1)),
        **cache_constants(cache),
        GROUP=group,
        HEAD_DIM=head_dim,
        WINDOW=sliding_window,
        SOFT_CAP=soft_cap,
        DOT_DTYPE=dot_dtype(q.dtype, interprets()),
        IS_SPLIT=splits > 1,
        BLOCK_M=blocks.rows,
        BLOCK_N=blocks.keys,
        BLOCK_D=block_dim,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    if splits > 1:
        merge_kernel[(num_heads, num_decodes)](
            out, partial_out, partial_logs, HEAD_DIM=head_dim, NUM_SPLITS=splits, BLOCK_D=block_dim
        )
