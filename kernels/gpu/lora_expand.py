"""y += h B on the tokens of a step's tiles: one program a block of a tile's rows and of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from ..kv_cache import FP8
from ..lora_work import LoraPlanes, LoraWork
from .lora_planes import split_items
from .lora_plans import ExpandPlan, expand_plan
from .lora_shrink import DOT_DTYPES

PAGE_RANK: tl.constexpr = tl.constexpr(16)

MAX_BLOCK_ROWS = 32
"""Fewer than the 64 rows of Hopper's asynchronous products (wgmma): the left operand comes out of
registers that the next page's sum overwrites, and the tensor cores have little to do anyway."""


@triton.jit
def _columns_of(block, SIZES: tl.constexpr, BLOCK_N: tl.constexpr):
    """The slice of a block of columns, the block's first column and the slice's end."""
    index, begin, end = 0, 0, 0
    blocks_before = 0
    columns_before = 0
    for number in tl.static_range(len(SIZES)):
        size = SIZES[number]
        here = block >= blocks_before
        index = tl.where(here, number, index)
        begin = tl.where(here, columns_before + (block - blocks_before) * BLOCK_N, begin)
        end = tl.where(here, columns_before + size, end)
        blocks_before += (size + BLOCK_N - 1) // BLOCK_N
        columns_before += size
    return index, begin, end


@triton.jit(do_not_specialize=["max_tiles"])
def expand_kernel(
    y,
    planes,
    b_pages,
    tokens,
    tile_starts,
    tile_counts,
    tile_items,
    item_pages,
    y_stride,
    max_tiles,
    N: tl.constexpr,
    SIZES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    K_STEPS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ADD: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """A block of columns lies in one slice; rows beyond the tile's count are masked everywhere."""
    tile = tl.program_id(0) // (ROWS // BLOCK_M)
    first_row = tl.program_id(0) % (ROWS // BLOCK_M) * BLOCK_M
    start, count = tl.load(tile_starts + tile), tl.load(tile_counts + tile)
    first, last = tl.load(tile_items + tile), tl.load(tile_items + tile + 1)
    live = tl.load(tile_items + max_tiles)
    if (first_row < count) & ((first < last) | (not ADD)):
        splits, _ = split_items(live, K_STEPS, PROGRAMS, MAX_SPLITS)
        index, begin, end = _columns_of(tl.program_id(1), SIZES, BLOCK_N)
        rows = first_row + tl.arange(0, BLOCK_M)
        ranks, split = tl.arange(0, PAGE_RANK), tl.arange(0, BLOCK_S)
        columns = begin + tl.arange(0, BLOCK_N)[None, :]
        is_row, is_column = (rows < count)[:, None], columns < end
        token = tl.load(tokens + start + rows[:, None], is_row, other=0)
        y_block = y + token.to(tl.int64) * y_stride + columns
        if ADD:
            total = tl.load(y_block, is_row & is_column, other=0.0).to(tl.float32)
        else:
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        width: tl.constexpr = len(SIZES) * PAGE_RANK
        cells = rows[:, None] * width + index * PAGE_RANK + ranks[None, :]
        is_part = (split < splits)[:, None, None] & is_row[None, :, :]
        for item in range(first, last):
            plane = (item * splits + split).to(tl.int64) * (ROWS * width)
            parts = tl.load(planes + plane[:, None, None] + cells[None, :, :], is_part, other=0.0)
            page = b_pages + tl.load(item_pages + item).to(tl.int64) * (PAGE_RANK * N)
            b_block = tl.load(page + ranks[:, None] * N + columns, is_column, other=0.0)
            hidden = tl.sum(parts, 0).to(DOT_DTYPE)
            total = tl.dot(hidden, b_block.to(DOT_DTYPE), total, input_precision="ieee")
        tl.store(y_block, total.to(y.dtype.element_ty), is_row & is_column)


def dot_dtype(page_dtype: torch.dtype, dtype: torch.dtype) -> tl.dtype:
    """In which hidden meets pages of ``page_dtype`` for a y of ``dtype``.

    Pages in 8 bits fill their range, so what meets them is small: float16 would lose it.
    """
    if page_dtype == FP8 and dtype == torch.float16:
        return tl.bfloat16
    return DOT_DTYPES[dtype]


def expand(
    hidden: LoraPlanes,
    b_pages: Tensor,
    slice_sizes: tuple[int, ...],
    work: LoraWork,
    y: Tensor,
    add: bool = True,
    plan: ExpandPlan | None = None,
) -> None:
    """y[t, slice s] += h[t, slice s] B[slice s] on the tiles' tokens; no other row is written.

    hidden as from ``shrink``, b_pages [P, 16, N], y [T, N] with N = sum(slice_sizes). Without
    ``add`` y is written and not read, with zeros in the tiles that have no items.
    """
    features = b_pages.shape[2]
    assert y.shape[1] == features == sum(slice_sizes)
    assert y.stride(1) == 1
    assert b_pages.is_contiguous()
    plan = plan or expand_plan(work.tile_rows, work.max_tiles, features)
    num_blocks = sum(triton.cdiv(size, plan.block_n) for size in slice_sizes)
    block_rows = min(work.tile_rows, MAX_BLOCK_ROWS)
    expand_kernel[(work.max_tiles * (work.tile_rows // block_rows), num_blocks)](
        y,
        hidden.planes,
        b_pages,
        work.tokens,
        work.tile_starts,
        work.tile_counts,
        work.tile_items,
        work.item_pages,
        y.stride(0),
        work.max_tiles,
        N=features,
        SIZES=slice_sizes,
        ROWS=work.tile_rows,
        BLOCK_M=block_rows,
        BLOCK_N=plan.block_n,
        K_STEPS=hidden.k_steps,
        PROGRAMS=hidden.programs,
        MAX_SPLITS=hidden.max_splits,
        BLOCK_S=triton.next_power_of_2(hidden.max_splits),
        ADD=add,
        DOT_DTYPE=tl.float32 if interprets() else dot_dtype(b_pages.dtype, y.dtype),
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
