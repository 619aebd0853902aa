"""Rotary embedding of queries and keys, and the way of keys and values into the cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from ..kv_cache import FP8_MAX, KvCache
from .float8 import to_float8

TILE = 1024
"""Elements of a tile: as many heads of one token."""
NUM_WARPS = 2


@triton.jit
def _turned(heads, cos, sin, mask, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Both halves [HEADS, BLOCK] of the rotated dims, rounded; ``heads`` [HEADS, 1] pointers."""
    dim = tl.arange(0, BLOCK)[None, :]
    mask = mask & (dim < HALF)
    first = tl.load(heads + dim, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(heads + HALF + dim, mask=mask, other=0.0).to(tl.float32)
    # The halves of cos are alike, those of sin but for the sign: the first one is negated.
    c = tl.load(tl.broadcast_to(cos + dim, mask.shape), mask=mask, other=0.0).to(tl.float32)
    s = tl.load(tl.broadcast_to(sin + HALF + dim, mask.shape), mask=mask, other=0.0).to(tl.float32)
    dtype = heads.dtype.element_ty
    return (first * c - second * s).to(dtype), (second * c + first * s).to(dtype)


@triton.jit
def _largest(rows):
    return tl.max(tl.abs(rows.to(tl.float32)), axis=1)


@triton.jit
def _quantized(rows, scale, INTERPRETED: tl.constexpr):
    """A quotient is 448 at most, but for rounding: nothing to clamp, and NaN stays NaN."""
    divisor = tl.broadcast_to(scale[:, None], rows.shape)
    return to_float8(tl.div_rn(rows.to(tl.float32), divisor), INTERPRETED)


@triton.jit
def _write_heads(
    heads,
    cos,
    sin,
    target,
    scales,
    mask,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    QUANTIZED: tl.constexpr,
    FP8_MAX: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Rotate ``heads`` (not at all with HALF 0) into ``target``, both [HEADS, 1] pointers."""
    BLOCK_REST: tl.constexpr = triton.next_power_of_2(max(HEAD_DIM - 2 * HALF, 1))
    half, rest = tl.arange(0, BLOCK_HALF)[None, :], tl.arange(0, BLOCK_REST)[None, :]
    in_half, in_rest = mask & (half < HALF), mask & (rest < HEAD_DIM - 2 * HALF)
    unturned = tl.load(heads + 2 * HALF + rest, mask=in_rest, other=0.0)
    if HALF > 0:
        first, second = _turned(heads, cos, sin, mask, HALF, BLOCK_HALF)
    if QUANTIZED:
        largest = _largest(unturned)
        if HALF > 0:
            largest = tl.maximum(largest, tl.maximum(_largest(first), _largest(second)))
        scale = tl.div_rn(largest, tl.full(largest.shape, FP8_MAX, tl.float32))
        scale = tl.where(scale > 0, scale, 1.0)
        tl.store(scales, scale[:, None], mask=mask)
        unturned = _quantized(unturned, scale, INTERPRETED)
        if HALF > 0:
            first = _quantized(first, scale, INTERPRETED)
            second = _quantized(second, scale, INTERPRETED)
    tl.store(target + 2 * HALF + rest, unturned, mask=in_rest)
    if HALF > 0:
        tl.store(target + half, first, mask=in_half)
        tl.store(target + HALF + half, second, mask=in_half)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def rope_and_kv_write_kernel(
    q,
    k,
    v,
    cos,
    sin,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_rope,
    stride_keys,
    stride_values,
    stride_key_scales,
    stride_value_scales,
    block_size,
    num_q_heads,
    num_kv_heads,
    num_q_groups,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HEADS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    FP8_MAX: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """HEADS query heads of one token, in place; or as many key and value heads, into its slot."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    if HALF > 0:
        cos += token * stride_rope
        sin += token * stride_rope
        if group < num_q_groups:
            head = group * HEADS + tl.arange(0, HEADS)[:, None]
            mask = head < num_q_heads
            place = q + token * stride_q_token + head * stride_q_head
            first, second = _turned(place, cos, sin, mask, HALF, BLOCK_HALF)
            dim = tl.arange(0, BLOCK_HALF)[None, :]
            tl.store(place + dim, first, mask=mask & (dim < HALF))
            tl.store(place + HALF + dim, second, mask=mask & (dim < HALF))
    if group >= num_q_groups:
        head = (group - num_q_groups) * HEADS + tl.arange(0, HEADS)[:, None]
        mask = head < num_kv_heads
        slot = tl.load(slots + token).to(tl.int64)
        block = slot // block_size
        row = (slot % block_size) * num_kv_heads + head
        heads = k + token * stride_k_token + head * stride_k_head
        target = keys + block * stride_keys + row * HEAD_DIM
        scales = key_scales
        if QUANTIZED:
            scales = key_scales + block * stride_key_scales + row
        _write_heads(
            heads,
            cos,
            sin,
            target,
            scales,
            mask,
            HEAD_DIM,
            HALF,
            BLOCK_HALF,
            QUANTIZED,
            FP8_MAX,
            INTERPRETED,
        )
        heads = v + token * stride_v_token + head * stride_v_head
        target = values + block * stride_values + row * HEAD_DIM
        if QUANTIZED:
            scales = value_scales + block * stride_value_scales + row
        _write_heads(
            heads, cos, sin, target, scales, mask, HEAD_DIM, 0, 1, QUANTIZED, FP8_MAX, INTERPRETED
        )


def rope_and_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    cache: KvCache,
    slot_mapping: Tensor,
) -> None:
    """Rotate ``q`` [T, Hq, D] in place, and put rotated ``k`` and ``v`` [T, Hkv, D] in the cache.

    ``rope`` is cos and sin [T, R], R <= D and even; ``k`` itself stays as it is.
    """
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    cos, sin = rope or (None, None)
    half = 0 if cos is None else cos.shape[1] // 2
    num_tokens, num_kv_heads, head_dim = k.shape
    heads, block_half = head_tile(head_dim, half)
    num_q_groups = triton.cdiv(q.shape[1], heads) if half else 0
    grid = (num_tokens, num_q_groups + triton.cdiv(num_kv_heads, heads))
    rope_and_kv_write_kernel[grid](
        q,
        k,
        v,
        cos,
        sin,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        slot_mapping,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        0 if cos is None else cos.stride(0),
        *(0 if part is None else part.stride(0) for part in _parts(cache)),
        cache.block_size,
        q.shape[1],
        num_kv_heads,
        num_q_groups,
        HEAD_DIM=head_dim,
        HALF=half,
        BLOCK_HALF=block_half,
        HEADS=heads,
        QUANTIZED=cache.key_scales is not None,
        FP8_MAX=FP8_MAX,
        INTERPRETED=interprets(),
        num_warps=NUM_WARPS,
    )


def head_tile(head_dim: int, half: int) -> tuple[int, int]:
    """Heads of a tile, and the columns that half of the rotated dims take."""
    elements = TILE * (4 if interprets() else 1)
    heads = max(1, elements // triton.next_power_of_2(head_dim))
    return heads, triton.next_power_of_2(max(half, 1))


def _parts(cache: KvCache) -> tuple[Tensor | None, ...]:
    return cache.keys, cache.values, cache.key_scales, cache.value_scales
