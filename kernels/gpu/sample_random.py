"""The noise of `kernels.sample`: Philox4x32-10 and the exponential race's draws, in float32."""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(128)
"""As `kernels.sample.GROUP`."""

GROUP_SHARE = tl.constexpr(1 / 128)

OWN_DRAW = tl.constexpr(0)
GROUP_DRAW = tl.constexpr(1)

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_KEY_STEP_0 = tl.constexpr(0x9E3779B9)
_KEY_STEP_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Words 0 to 3 of the block of a counter, all uint32, under the key (k0, k1)."""
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, _MULTIPLIER_0)
        high_1 = tl.umulhi(c2, _MULTIPLIER_1)
        low_0 = c0 * _MULTIPLIER_0
        low_1 = c2 * _MULTIPLIER_1
        c0 = high_1 ^ c1 ^ k0
        c1 = low_1
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0
        k0 += _KEY_STEP_0
        k1 += _KEY_STEP_1
    return c0, c1, c2, c3


@triton.jit
def draw(streams, row, num_rows, index, KIND: tl.constexpr):
    """Words 0 and 1 for each index under a row's stream; streams [4, num_rows] int64."""
    c0 = index.to(tl.uint32)
    zero = c0 * 0
    k0 = tl.load(streams + row).to(tl.uint32) + zero
    k1 = tl.load(streams + num_rows + row).to(tl.uint32) + zero
    c1 = tl.load(streams + 2 * num_rows + row).to(tl.uint32) + zero
    c2 = tl.load(streams + 3 * num_rows + row).to(tl.uint32) + zero
    word_0, word_1, _, _ = philox(c0, c1, c2, zero + KIND, k0, k1)
    return word_0, word_1


@triton.jit
def exponential(words):
    """-log((2 * (word >> 9) + 1) / 2**24); the 24 bits are exact in float32."""
    odd = ((words >> 9) * 2 + 1).to(tl.float32)
    return -tl.log(odd * 5.9604644775390625e-08)
