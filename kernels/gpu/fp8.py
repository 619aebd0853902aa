"""Rows rounded to 8 bits, each with a scale of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from ..kv_cache import FP8
from .float8 import to_float8


@triton.jit
def quantize_rows_kernel(
    x,
    values,
    scales,
    stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One row of ``x``, read once; ``values`` is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < SIZE
    wide = tl.load(x + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(wide), axis=0), 448.0)
    scale = tl.where(scale > 0, scale, 1.0)
    # Divided as exactly as the twin does: a rounding more would move values to their neighbours.
    quotient = tl.div_rn(wide, tl.full((BLOCK,), 1.0, tl.float32) * scale)
    tl.store(values + row * SIZE + column, to_float8(quotient, INTERPRETED), mask=mask)
    tl.store(scales + row, scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` [T, K] -> e4m3 [T, K] and scales [T] float32; a row of zeros has scale 1."""
    assert x.stride(1) == 1
    num_rows, size = x.shape
    values = torch.empty((num_rows, size), dtype=FP8, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    if num_rows:
        block, num_warps = block_of(size)
        quantize_rows_kernel[(num_rows,)](
            x,
            values,
            scales,
            x.stride(0),
            SIZE=size,
            BLOCK=block,
            INTERPRETED=interprets(),
            num_warps=num_warps,
        )
    return values, scales


def block_of(size: int) -> tuple[int, int]:
    """The block that a row of ``size`` takes, and the warps that share it."""
    block = triton.next_power_of_2(size)
    return block, min(max(block // 512, 1), 16)
