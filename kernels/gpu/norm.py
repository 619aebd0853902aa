"""RMSNorm of rows or of heads, with or without the residual's sum before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets

TILE = 1024
"""Elements of a tile at least; short rows (heads) share one."""


@triton.jit
def normed_rows(
    x, weight, eps, offset, SIZE: tl.constexpr, HAS_OFFSET: tl.constexpr, DTYPE: tl.constexpr
):
    """x [ROWS, BLOCK] float32, 0 beyond SIZE; weight [ROWS or 1, BLOCK] float32."""
    mean = tl.sum(x * x, axis=1) / SIZE
    normed = x * tl.rsqrt(mean + eps)[:, None]
    if HAS_OFFSET:
        return normed * (weight + offset)
    return normed.to(DTYPE).to(tl.float32) * weight


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    total,
    num_rows,
    num_heads,
    stride_token,
    stride_head,
    eps,
    offset,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
):
    """Row r is head r % num_heads of token r // num_heads; all but ``x`` are contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows) & (column < SIZE)
    place = row * SIZE + column
    head = (row // num_heads) * stride_token + (row % num_heads) * stride_head
    dtype = out.dtype.element_ty
    values = tl.load(x + head + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        rounded = values.to(dtype)
        tl.store(total + place, rounded, mask=mask)
        values = rounded.to(tl.float32)
    factor = tl.load(weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
    normed = normed_rows(values, factor, eps, offset, SIZE, HAS_OFFSET, dtype)
    tl.store(out + place, normed.to(dtype), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """The norm of ``x`` [T, N] or, head by head, [T, heads, N]; heads may be strided."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, out, None, eps, weight_offset)
    return out


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); all [T, N], the sum rounded before it is normed."""
    out, total = torch.empty_like(residual), torch.empty_like(residual)
    _launch(x, residual, weight, out, total, eps, weight_offset)
    return out, total


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    out: Tensor,
    total: Tensor | None,
    eps: float,
    offset: float,
) -> None:
    assert x.stride(-1) == 1
    assert residual is None or residual.is_contiguous()
    num_tokens, num_heads, size = (x.unsqueeze(1) if x.ndim == 2 else x).shape
    num_rows = num_tokens * num_heads
    block, rows, num_warps = tile_of(size)
    rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x,
        residual,
        weight,
        out,
        total,
        num_rows,
        num_heads,
        x.stride(0),
        0 if x.ndim == 2 else x.stride(1),
        eps,
        offset,
        SIZE=size,
        BLOCK=block,
        ROWS=rows,
        HAS_RESIDUAL=residual is not None,
        HAS_OFFSET=offset != 0,
        num_warps=num_warps,
    )


def tile_of(size: int) -> tuple[int, int, int]:
    """Columns and rows of a tile for rows of ``size``, and the warps that share it."""
    block = triton.next_power_of_2(size)
    rows = max(1, (16 if interprets() else 1) * TILE // block)
    return block, rows, min(max(block * rows // 512, 1), 16)
