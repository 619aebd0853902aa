"""The floors of top-k, top-p and min-p (see `kernels.sample`), by bisection instead of a sort.

A k-th largest logit is the largest key with k ids at or above it, and the last logit of a nucleus
the largest key with the limit's weight at or above it: the same search, with other weights. It
walks over those groups of ids only that have a member above a bound known from groups' maxima.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from .sample_order import LEAST_KEY, key_values, order_keys
from .sample_random import GROUP

GROUPS = 32
"""Groups of ids in one tile."""

INTERPRETED_GROUPS = 4

NUM_WARPS = 16

_WEIGHT_UNIT = tl.constexpr(2.0**42)
_INFINITY_KEY = tl.constexpr(0x7F800000)
_MINUS_INFINITY_KEY = tl.constexpr(-0x7F800001)


@triton.jit
def _is_off(top_k, top_p, min_p):
    return (top_k <= 0) & (top_p >= 1.0) & (min_p <= 0.0)


@triton.jit(do_not_specialize=["top_ks", "top_ps", "min_ps"])
def peaks_kernel(
    logits, top_ks, top_ps, min_ps, peaks, vocab_size, num_groups, GROUPS: tl.constexpr
):
    """The largest key of each of a row's groups; peaks [N, num_groups] int32."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    if _is_off(tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)):
        return
    groups = chunk * GROUPS + tl.arange(0, GROUPS)
    keys = _load_keys(logits + row.to(tl.int64) * vocab_size, groups, vocab_size)
    place = peaks + row * num_groups + groups
    tl.store(place, tl.max(keys, axis=1), mask=groups < num_groups)


@triton.jit
def _load_keys(logits, groups, vocab_size):
    """Keys [groups, GROUP]; the least one outside the vocabulary."""
    ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = ids < vocab_size
    values = tl.load(logits + ids, mask=inside, other=0.0)
    return tl.where(inside, order_keys(values), LEAST_KEY)


@triton.jit
def _weights(keys, top, temperature):
    """exp((value - top) / temperature) as int64 multiples of 2**-42; 0 of the least key."""
    values = key_values(tl.maximum(keys, _MINUS_INFINITY_KEY))
    return (tl.exp(tl.div_rn(values - top, temperature)) * _WEIGHT_UNIT).to(tl.int64)


@triton.jit
def _quarters(low, high):
    """Three keys that cut (low, high] in four."""
    step = (high - low + 3) // 4
    return low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)


@triton.jit
def _narrow(low, high, first, second, third, limit, sum_1, sum_2, sum_3):
    """What is left of [low, high], given the sums at or above the three keys between."""
    new_low = tl.where(sum_1 >= limit, first, low)
    new_low = tl.where(sum_2 >= limit, second, new_low)
    new_low = tl.where(sum_3 >= limit, third, new_low)
    new_high = tl.where(sum_3 < limit, third - 1, high)
    new_high = tl.where(sum_2 < limit, second - 1, new_high)
    new_high = tl.where(sum_1 < limit, first - 1, new_high)
    return new_low, new_high


@triton.jit
def _bisect_peaks(peaks, weights, limit, low, high):
    """The largest key in [low, high] with ``limit`` of the maxima at or above it, or low."""
    while low < high:
        first, second, third = _quarters(low, high)
        sum_1 = tl.sum(tl.where(peaks >= first, weights, 0), axis=0)
        sum_2 = tl.sum(tl.where(peaks >= second, weights, 0), axis=0)
        sum_3 = tl.sum(tl.where(peaks >= third, weights, 0), axis=0)
        low, high = _narrow(low, high, first, second, third, limit, sum_1, sum_2, sum_3)
    return low


@triton.jit
def _load_active(logits, active, start, num_active, vocab_size, GROUPS: tl.constexpr):
    """Keys [GROUPS, GROUP] of the next of the listed groups."""
    index = start + tl.arange(0, GROUPS)
    groups = tl.load(active + index, mask=index < num_active, other=vocab_size)
    return _load_keys(logits, groups, vocab_size)


@triton.jit
def _sum_above(
    logits, active, num_active, vocab_size, bound, top, temperature, GROUPS: tl.constexpr
):
    """The weight of all ids of the listed groups at or above a key."""
    total = tl.zeros((GROUPS, GROUP), tl.int64)
    for start in range(0, num_active, GROUPS):
        keys = _load_active(logits, active, start, num_active, vocab_size, GROUPS)
        total += tl.where(keys >= bound, _weights(keys, top, temperature), 0)
    return tl.sum(tl.sum(total, axis=1), axis=0)


@triton.jit
def _bisect(
    logits, active, num_active, vocab_size, bound, limit, low, high, top, temperature,
    COUNTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The largest key in [low, high] with ``limit`` at or above it in the listed groups, or low.

    Of ids at or above ``bound``, their weights or, with COUNTS, 1 each.
    """
    while low < high:
        first, second, third = _quarters(low, high)
        sums_1 = tl.zeros((GROUPS, GROUP), tl.int64)
        sums_2 = tl.zeros((GROUPS, GROUP), tl.int64)
        sums_3 = tl.zeros((GROUPS, GROUP), tl.int64)
        for start in range(0, num_active, GROUPS):
            keys = _load_active(logits, active, start, num_active, vocab_size, GROUPS)
            if COUNTS:
                weights = (keys >= bound.to(tl.int32)).to(tl.int64)
            else:
                weights = tl.where(keys >= bound.to(tl.int32), _weights(keys, top, temperature), 0)
            sums_1 += tl.where(keys >= first.to(tl.int32), weights, 0)
            sums_2 += tl.where(keys >= second.to(tl.int32), weights, 0)
            sums_3 += tl.where(keys >= third.to(tl.int32), weights, 0)
        sum_1 = tl.sum(tl.sum(sums_1, axis=1), axis=0)
        sum_2 = tl.sum(tl.sum(sums_2, axis=1), axis=0)
        sum_3 = tl.sum(tl.sum(sums_3, axis=1), axis=0)
        low, high = _narrow(low, high, first, second, third, limit, sum_1, sum_2, sum_3)
    return low


@triton.jit
def _list_groups(peaks, bound, active):
    """Write the groups that have a key at or above ``bound``, in order; how many."""
    chosen = ((peaks >= bound) & (peaks > LEAST_KEY)).to(tl.int32)
    place = tl.cumsum(chosen, axis=0) - chosen
    tl.debug_barrier()  # the last list has been read
    groups = tl.arange(0, peaks.shape[0])
    tl.store(active + place, groups, mask=chosen > 0)
    tl.debug_barrier()
    return tl.sum(chosen, axis=0)


@triton.jit
def _key_from(value):
    """The least key of a float32 at or above a float64 value."""
    nearest = value.to(tl.float32)
    return order_keys(nearest).to(tl.int64) + (nearest.to(tl.float64) < value).to(tl.int64)


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps", "min_ps"])
def floors_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, all_peaks, all_active, floors,
    vocab_size, num_groups, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row's floor; WIDTH is a power of two, all_active [N, num_groups] int32 room for lists."""
    row = tl.program_id(0)
    top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
    if _is_off(top_k, top_p, min_p):
        tl.store(floors + row, float("-inf"))
        return
    index = tl.arange(0, WIDTH)
    peaks = tl.load(all_peaks + row * num_groups + index, mask=index < num_groups, other=LEAST_KEY)
    high = tl.max(peaks, axis=0).to(tl.int64)
    top = key_values(high.to(tl.int32))
    if (high >= _INFINITY_KEY) | (top == float("-inf")):  # a row that fails
        tl.store(floors + row, float("-inf"))
        return
    logits += row.to(tl.int64) * vocab_size
    active = all_active + row * num_groups
    temperature = tl.load(temperatures + row)
    narrow = temperature.to(tl.float32)

    low = tl.full((), LEAST_KEY, tl.int64)
    floor = tl.full((), float("-inf"), tl.float64)
    if min_p > 0.0:
        floor = top.to(tl.float64) + temperature * tl.log(min_p)
        low = _key_from(floor)
    if (top_k > 0) & (top_k < vocab_size):
        ones = (peaks > LEAST_KEY).to(tl.int64)
        bound = _bisect_peaks(peaks, ones, top_k, low, high)
        num_active = _list_groups(peaks, bound, active)
        kth = _bisect(
            logits, active, num_active, vocab_size, bound, top_k, bound, high, top, narrow,
            True, GROUPS,
        )  # fmt: skip
        if kth > low:  # else min_p leaves no more than k
            floor = key_values(kth.to(tl.int32)).to(tl.float64)
            low = kth
    if top_p < 1.0:
        num_active = _list_groups(peaks, low, active)
        total = _sum_above(logits, active, num_active, vocab_size, low, top, narrow, GROUPS)
        limit = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
        # What the nucleus can spare is more than all ids below a share of it hold together; and
        # the groups' maxima alone may hold enough.
        spare = (total - limit).to(tl.float32) / _WEIGHT_UNIT / vocab_size
        least = top + narrow * (tl.log(spare) - 0.01) - 1e-5 * tl.abs(top)
        bound = tl.maximum(low, order_keys(least).to(tl.int64))
        weights = tl.where(peaks >= low, _weights(peaks, top, narrow), 0)
        bound = _bisect_peaks(peaks, weights, limit, tl.minimum(bound, high), high)
        num_active = _list_groups(peaks, bound, active)
        last = _bisect(
            logits, active, num_active, vocab_size, low, limit, bound, high, top, narrow,
            False, GROUPS,
        )  # fmt: skip
        floor = tl.maximum(floor, key_values(last.to(tl.int32)).to(tl.float64))
    tl.store(floors + row, floor)


def filter_floors(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """As `kernels.sample.filter_floors`; a row that fails has no floor."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    num_groups = triton.cdiv(vocab_size, GROUP.value)
    peaks = torch.empty(num_rows, num_groups, dtype=torch.int32, device=logits.device)
    active = torch.empty_like(peaks)
    floors = torch.empty(num_rows, dtype=torch.float64, device=logits.device)
    filters = (top_k.contiguous(), top_p.contiguous(), min_p.contiguous())
    tile = INTERPRETED_GROUPS if interprets() else GROUPS
    peaks_kernel[(num_rows, triton.cdiv(num_groups, tile))](
        logits, *filters, peaks, vocab_size, num_groups, tile
    )
    floors_kernel[(num_rows,)](
        logits, temperature.contiguous(), *filters, peaks, active, floors, vocab_size, num_groups,
        tile, triton.next_power_of_2(num_groups), num_warps=NUM_WARPS,
    )  # fmt: skip
    return floors
