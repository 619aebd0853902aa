"""Floats as integers of the same order, so that maxima and ties need no care for NaN or -0."""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(-(2**63))
"""Under every packed pair."""

LEAST_KEY = tl.constexpr(-(2**31))
"""Under every float's key."""

_NAN_BITS = tl.constexpr(0x7FC00000)
_LOW_BITS = tl.constexpr(0x7FFFFFFF)
_ID_BITS = tl.constexpr(0xFFFFFFFF)


@triton.jit
def order_keys(values):
    """int32 keys of float32 values in their order: -0 is 0, and any NaN is over infinity."""
    bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(values == 0.0, 0, bits)
    bits = tl.where(values != values, _NAN_BITS, bits)
    return bits ^ ((bits >> 31) & _LOW_BITS)


@triton.jit
def key_values(keys):
    """The float32 values of int32 keys."""
    return (keys ^ ((keys >> 31) & _LOW_BITS)).to(tl.float32, bitcast=True)


@triton.jit
def pack_pairs(keys, ids):
    """int64 of a key and an id: larger for a larger key and, of equal ones, a lower id."""
    return (keys.to(tl.int64) << 32) | (_ID_BITS - ids.to(tl.int64))


@triton.jit
def pair_ids(pairs):
    """The ids of packed pairs."""
    return _ID_BITS - (pairs & _ID_BITS)


@triton.jit
def pair_keys(pairs):
    """The keys of packed pairs."""
    return (pairs >> 32).to(tl.int32)
