"""One tile of keys and values in an online softmax; shared by decode and prefill attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..kv_cache import KvCache

DOT_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LOG2_E = tl.constexpr(1.4426950408889634)
FP8_MAX = tl.constexpr(448.0)


@triton.jit
def load_rows(
    base, rows, seen, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """``base[rows + 0 .. HEAD_DIM)`` [N, BLOCK_D]: zeros where not ``seen`` [N] and as padding."""
    columns = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None] + columns[None, :]
    if MASKED or HEAD_DIM < BLOCK_D:
        loaded = tl.load(pointers, seen[:, None] & (columns < HEAD_DIM)[None, :], 0.0)
    else:
        loaded = tl.load(pointers)
    return loaded


@triton.jit
def scores_of(products, scale, key_scales, SOFT_CAP: tl.constexpr, HAS_SCALES: tl.constexpr):
    """Scores in units of log 2, so that exp2 serves: ``products`` [M, N] scaled and capped."""
    if HAS_SCALES:
        products *= key_scales[None, :]
    if SOFT_CAP is None:
        scores = products * (scale * LOG2_E)
    else:  # tanh(x) = 1 - 2 / (1 + exp(2x)), which is right at both infinities too
        grown = tl.exp2(products * (scale * (2.0 * LOG2_E / SOFT_CAP)))
        scores = (SOFT_CAP * LOG2_E) * (1.0 - 2.0 / (1.0 + grown))
    return scores


@triton.jit
def attend_tile(
    acc,
    peak,
    total,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    positions,
    seen,
    visible,
    scale,
    BLOCK_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    SCALE_BLOCK_STRIDE: tl.constexpr,
    SCALE_TOKEN_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The state (acc [M, BLOCK_D], peak [M], total [M]) with N more keys in it.

    Arithmetic of "Online normalizer calculation for softmax" (arXiv 1805.02867).

    ``q`` [M, BLOCK_D]; ``keys``, ``values`` and scales point at the KV head's row of block 0;
    ``table`` at the request's blocks. ``positions`` [N] are the keys', those ``seen`` [N] are
    read, and of these a row attends to the ``visible`` ([M, N], or [1, N] for all rows).
    Without MASKED all keys are seen by all rows.
    """
    blocks = tl.load(table + positions // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
    offsets = positions % BLOCK_SIZE
    rows = blocks * BLOCK_STRIDE + offsets * TOKEN_STRIDE
    k = load_rows(keys, rows, seen, HEAD_DIM, BLOCK_D, MASKED)
    v = load_rows(values, rows, seen, HEAD_DIM, BLOCK_D, MASKED)
    tile_key_scales = None
    if HAS_SCALES:
        scale_rows = blocks * SCALE_BLOCK_STRIDE + offsets * SCALE_TOKEN_STRIDE
        tile_key_scales = tl.load(key_scales + scale_rows, mask=seen, other=0.0)
        tile_value_scales = tl.load(value_scales + scale_rows, mask=seen, other=0.0)

    products = tl.dot(q, tl.trans(k.to(DOT_DTYPE)), input_precision="ieee")
    scores = scores_of(products, scale, tile_key_scales, SOFT_CAP, HAS_SCALES)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # A row that has seen no key yet has a peak of -inf, which no difference survives.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(peak - base)
    total = total * decay + tl.sum(weights, 1)
    if HAS_SCALES:
        # A scale is a row's largest magnitude over FP8_MAX. As such a magnitude it is in the
        # range of float16 too; `output_of` divides by FP8_MAX.
        weights *= (tile_value_scales * FP8_MAX)[None, :]
    acc = acc * decay[:, None]
    acc = tl.dot(weights.to(DOT_DTYPE), v.to(DOT_DTYPE), acc, input_precision="ieee")
    return acc, new_peak, total


@triton.jit
def output_of(acc, total, HAS_SCALES: tl.constexpr):
    """The weighted mean of values [M, BLOCK_D] float32; zeros where a row saw no key."""
    if HAS_SCALES:
        total *= FP8_MAX
    return acc / tl.where(total > 0.0, total, 1.0)[:, None]


def dot_dtype(dtype: torch.dtype, interpreted: bool) -> tl.dtype:
    """What is multiplied for queries in ``dtype``; the interpreter has no bfloat16 products."""
    return tl.float32 if interpreted else DOT_DTYPES[dtype]


def cache_constants(cache: KvCache) -> dict[str, int | bool]:
    """How a cache lies in memory; constant, since it never moves, so that addresses are cheap."""
    scales = cache.key_scales
    assert cache.keys.stride() == cache.values.stride()
    assert cache.keys.stride(-1) == 1
    block_stride, token_stride, head_stride, _ = cache.keys.stride()
    return {
        "BLOCK_STRIDE": block_stride,
        "TOKEN_STRIDE": token_stride,
        "HEAD_STRIDE": head_stride,
        "SCALE_BLOCK_STRIDE": 0 if scales is None else scales.stride(0),
        "SCALE_TOKEN_STRIDE": 0 if scales is None else scales.stride(1),
        "HAS_SCALES": scales is not None,
        "BLOCK_SIZE": cache.block_size,
    }
