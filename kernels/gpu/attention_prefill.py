"""Attention of prompts' chunks: one program for some queries of a request and one KV head."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from ..kv_cache import KvCache
from ..metadata import AttentionMetadata
from .attention_blocks import power_of_two, prefill_blocks
from .attention_tiles import attend_tile, cache_constants, dot_dtype, load_rows, output_of


@triton.jit
def find_request(cu_seqlens_q, tile, first, num_requests, TILE_QUERIES: tl.constexpr):
    """(request, its tile) of the step's ``tile``; requests before ``first`` have none.

    Request i's tiles begin at (cu_seqlens_q[i] - cu_seqlens_q[first]) // TILE_QUERIES + i - first:
    no two begin at the same, and each has enough. Some have one too many.
    """
    base = tl.load(cu_seqlens_q + first)
    low, high = first, num_requests - 1
    while low < high:
        middle = (low + high + 1) // 2
        begin = (tl.load(cu_seqlens_q + middle) - base) // TILE_QUERIES + middle - first
        is_behind = begin <= tile
        low = tl.where(is_behind, middle, low)
        high = tl.where(is_behind, high, middle - 1)
    begin = (tl.load(cu_seqlens_q + low) - base) // TILE_QUERIES + low - first
    return low, tile - begin


@triton.jit(
    do_not_specialize=["num_decodes", "num_requests", "table_stride"],
    do_not_specialize_on_alignment=["block_tables", "cu_seqlens_q", "seq_lens"],
)
def prefill_kernel(
    out,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    block_tables,
    cu_seqlens_q,
    seq_lens,
    scale,
    num_decodes,
    num_requests,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The program (KV head, tile) of `prefill_attention`."""
    TILE_QUERIES: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    # The last tiles of a prompt have the most keys: they begin first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    request, tile = find_request(cu_seqlens_q, tile, num_decodes, num_requests, TILE_QUERIES)
    row = tl.load(cu_seqlens_q + request)
    num_queries = tl.load(cu_seqlens_q + request + 1) - row
    length = tl.load(seq_lens + request)
    num_cached = length - num_queries
    first = tile * TILE_QUERIES
    last = tl.minimum(first + TILE_QUERIES, num_queries)

    rows = tl.arange(0, BLOCK_M)
    queries = first + rows // GROUP
    is_query = queries < last
    heads = kv_head * GROUP + rows % GROUP
    tokens = (row + queries).to(tl.int64)
    q_rows = tokens * Q_STRIDE + heads * Q_HEAD_STRIDE
    q_tile = load_rows(q, q_rows, is_query, HEAD_DIM, BLOCK_D, True).to(DOT_DTYPE)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    keys += kv_head * HEAD_STRIDE
    values += kv_head * HEAD_STRIDE
    if HAS_SCALES:
        key_scales += kv_head
        value_scales += kv_head
    table = block_tables + request.to(tl.int64) * table_stride

    start, end = 0, num_cached + last
    full_end = (num_cached + first + 1) // BLOCK_N * BLOCK_N  # keys that all queries see
    if WINDOW is not None:
        start = tl.maximum(num_cached + first - WINDOW + 1, 0)
        full_end = start
    end = tl.where(first < num_queries, end, start)
    for masked in tl.static_range(0 if WINDOW is None else 1, 2):
        begin, stop = (full_end, end) if masked else (start, tl.minimum(full_end, end))
        for tile_start in range(begin, stop, BLOCK_N):
            positions = tile_start + tl.arange(0, BLOCK_N)
            ahead = num_cached + queries[:, None] - positions[None, :]
            visible = ahead >= 0
            if WINDOW is not None:
                visible = visible & (ahead < WINDOW)
            acc, peak, total = attend_tile(
                *(acc, peak, total, q_tile, keys, values, key_scales, value_scales),
                *(table, positions, positions < end, visible, scale, BLOCK_STRIDE, TOKEN_STRIDE),
                *(SCALE_BLOCK_STRIDE, SCALE_TOKEN_STRIDE, BLOCK_SIZE, HEAD_DIM, BLOCK_D),
                *(SOFT_CAP, DOT_DTYPE, HAS_SCALES, masked == 1),
            )

    columns = tl.arange(0, BLOCK_D)
    out_rows = tokens * (tl.num_programs(0) * GROUP) + heads
    pointers = out + out_rows[:, None] * HEAD_DIM + columns[None, :]
    mask = is_query[:, None] & (columns < HEAD_DIM)[None, :]
    result = output_of(acc, total, HAS_SCALES)
    tl.store(pointers, result.to(out.dtype.element_ty), mask=mask)


def prefill_attention(
    out: Tensor,
    q: Tensor,
    cache: KvCache,
    attention: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """The rows of ``out`` behind the decodes': causal attention of ``q`` [T, Hq, D].

    A tile is of as many queries of one request as fill its rows with their heads of one KV head
    (FlashAttention-2, arXiv 2307.08691). ``out`` [T, Hq, D] is contiguous.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = cache.keys.shape[2]
    group = num_heads // num_kv_heads
    blocks = prefill_blocks(group, head_dim, q.itemsize, interprets())
    num_requests, first = len(attention.query_lens), attention.num_decodes
    num_tiles = (len(q) - first) // (blocks.rows // group) + num_requests - first
    prefill_kernel[(num_kv_heads, num_tiles)](
        *(out, q, cache.keys, cache.values, cache.key_scales, cache.value_scales),
        *(attention.block_tables, attention.cu_seqlens_q, attention.seq_lens, scale),
        *(first, num_requests, attention.block_tables.stride(0), q.stride(0), q.stride(1)),
        **cache_constants(cache),
        GROUP=group,
        HEAD_DIM=head_dim,
        WINDOW=sliding_window,
        SOFT_CAP=soft_cap,
        DOT_DTYPE=dot_dtype(q.dtype, interprets()),
        BLOCK_M=blocks.rows,
        BLOCK_N=blocks.keys,
        BLOCK_D=power_of_two(head_dim),
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
