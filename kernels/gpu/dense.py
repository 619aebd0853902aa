"""Rows that adapters scale, shift or norm in their own way: one launch a part of the routing."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..dense import VectorRows
from .norm import normed_rows, tile_of

BLOCK = 1024


# What changes from step to step is not compiled for: a new kernel would hold a step up.
@triton.jit(
    do_not_specialize=["first_token", "first_page"],
    do_not_specialize_on_alignment=["tokens", "pages"],
)
def scale_rows_kernel(
    y,
    scales,
    shifts,
    tokens,
    pages,
    first_token,
    first_page,
    size,
    stride_token,
    stride_scales,
    stride_shifts,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one routed token; ``tokens`` None: first_token on, ``pages`` None: one."""
    number = tl.program_id(0).to(tl.int64)
    token = first_token + number if tokens is None else tl.load(tokens + number)
    page = first_page + number * 0 if pages is None else tl.load(pages + number)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    place = y + token * stride_token + column
    values = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scales + page * stride_scales + column, mask=mask, other=0.0)
    shift = tl.load(shifts + page * stride_shifts + column, mask=mask, other=0.0)
    tl.store(place, (values * scale + shift).to(y.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["first_token", "first_page", "num_rows"],
    do_not_specialize_on_alignment=["tokens", "pages"],
)
def norm_rows_kernel(
    y,
    x,
    weights,
    tokens,
    pages,
    first_token,
    first_page,
    num_rows,
    num_heads,
    stride_y_token,
    stride_y_head,
    stride_x_token,
    stride_x_head,
    stride_weights,
    eps,
    offset,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
):
    """Row r is head r % num_heads of the routed token r // num_heads."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = row < num_rows
    mask = inside & (column < SIZE)
    number, head = row // num_heads, row % num_heads
    if tokens is None:
        token = first_token + number
    else:
        token = tl.load(tokens + number, mask=inside, other=0)
    if pages is None:
        page = first_page + number * 0
    else:
        page = tl.load(pages + number, mask=inside, other=0)
    place = x + token * stride_x_token + head * stride_x_head + column
    values = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weights + page * stride_weights + column, mask=mask, other=0.0)
    dtype = y.dtype.element_ty
    normed = normed_rows(values, weight, eps, offset, SIZE, HAS_OFFSET, dtype)
    place = y + token * stride_y_token + head * stride_y_head + column
    tl.store(place, normed.to(dtype), mask=mask)


def scale_rows(y: Tensor, scales: Tensor, shifts: Tensor, routed: Sequence[VectorRows]) -> None:
    """y[t] = y[t] * scales[p] + shifts[p]; y [T, N], scales and shifts [P, N] float32."""
    assert y.stride(1) == scales.stride(1) == shifts.stride(1) == 1
    size = y.shape[1]
    for part in routed:
        scale_rows_kernel[(_num_tokens(part), triton.cdiv(size, BLOCK))](
            y,
            scales,
            shifts,
            *_places(part),
            size,
            y.stride(0),
            scales.stride(0),
            shifts.stride(0),
            BLOCK=BLOCK,
        )


def norm_rows(
    y: Tensor,
    x: Tensor,
    weights: Tensor,
    eps: float,
    weight_offset: float,
    routed: Sequence[VectorRows],
) -> None:
    """y[t] = rms_norm(x[t], weights[p]); x, y [T, N] or [T, heads, N], weights [P, N] float32."""
    assert x.stride(-1) == y.stride(-1) == weights.stride(1) == 1
    if x.ndim == 2:
        x, y = x.unsqueeze(1), y.unsqueeze(1)
    num_heads, size = x.shape[1:]
    block, rows, num_warps = tile_of(size)
    for part in routed:
        num_rows = _num_tokens(part) * num_heads
        norm_rows_kernel[(triton.cdiv(num_rows, rows),)](
            y,
            x,
            weights,
            *_places(part),
            num_rows,
            num_heads,
            y.stride(0),
            y.stride(1),
            x.stride(0),
            x.stride(1),
            weights.stride(0),
            eps,
            weight_offset,
            SIZE=size,
            BLOCK=block,
            ROWS=rows,
            HAS_OFFSET=weight_offset != 0,
            num_warps=num_warps,
        )


def _num_tokens(part: VectorRows) -> int:
    index = part.tokens.index
    return part.tokens.stop - part.tokens.start if index is None else index.shape[0]


def _places(part: VectorRows) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Tokens and pages as tensors, or where the first of them is."""
    pages = part.pages
    if isinstance(pages, int):
        return part.tokens.index, None, part.tokens.start, pages
    return part.tokens.index, pages, part.tokens.start, 0
