"""Numbers in 8 bits (e4m3): a conversion that the interpreter, too, gets right."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_float8(x, INTERPRETED: tl.constexpr):
    """``x`` float32, at most 448 in magnitude -> float8e4nv, rounded to nearest, ties to even.

    The interpreter loses the carry of a rounded mantissa and cuts off what is below 2^-6: for it
    ``x`` is rounded first, so that nothing is left to round. NaN it takes for 384; a GPU keeps it.
    """
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFFF + ((bits >> 20) & 1)
        normal = (bits & ~0xFFFFF).to(tl.float32, bitcast=True)
        subnormal = (x + 24576.0) - 24576.0  # the sum's last bit is 2^-9
        x = tl.where(tl.abs(x) < 0.015625, subnormal, normal)
    return x.to(tl.float8e4nv)
