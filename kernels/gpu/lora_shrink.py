"""h = x A^T for the tiles of a step: one program an item and split of K."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from ..lora_work import LoraPlanes, LoraWork
from .lora_planes import split_items
from .lora_plans import ShrinkPlan, shrink_plan

DOT_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit(do_not_specialize=["max_tiles"])
def shrink_kernel(
    planes,
    x,
    a_pages,
    scales,
    tokens,
    tile_starts,
    tile_counts,
    tile_items,
    item_tiles,
    item_pages,
    x_stride,
    max_tiles,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """Program i adds up split i % splits of item i // splits, into plane i."""
    program = tl.program_id(0)
    live = tl.load(tile_items + max_tiles)
    K_STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    splits, steps = split_items(live, K_STEPS, PROGRAMS, MAX_SPLITS)
    item = program // splits
    if item < live:
        tile = tl.load(item_tiles + item)
        page = tl.load(item_pages + item).to(tl.int64)
        rows, columns, depth = tl.arange(0, ROWS), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
        is_row = (rows < tl.load(tile_counts + tile))[:, None]
        is_column = (columns < COLUMNS)[None, :]
        token = tl.load(tokens + tl.load(tile_starts + tile) + rows[:, None], is_row, other=0)
        x_rows = x + token.to(tl.int64) * x_stride
        a_columns = a_pages + page * (COLUMNS * K) + columns[None, :] * K
        hidden = tl.zeros((ROWS, BLOCK_C), tl.float32)
        first = (program % splits) * steps
        for step in range(first, tl.minimum(first + steps, K_STEPS)):
            k = step * BLOCK_K + depth
            x_block = tl.load(x_rows + k[None, :], is_row & (k < K)[None, :], other=0.0)
            a_block = tl.load(a_columns + k[:, None], is_column & (k < K)[:, None], other=0.0)
            x_block, a_block = x_block.to(DOT_DTYPE), a_block.to(DOT_DTYPE)
            hidden = tl.dot(x_block, a_block, hidden, input_precision="ieee")
        if HAS_SCALES:
            hidden *= tl.load(scales + page * COLUMNS + columns[None, :], is_column, other=0.0)
        plane = planes + program.to(tl.int64) * (ROWS * COLUMNS)
        cells = rows[:, None] * COLUMNS + columns[None, :]
        tl.store(plane + cells, hidden, is_row & is_column)


def shrink(
    x: Tensor,
    a_pages: Tensor,
    work: LoraWork,
    scales: Tensor | None = None,
    plan: ShrinkPlan | None = None,
) -> LoraPlanes:
    """h = x A^T (* scales) in float32, as partial sums for ``expand``.

    x [T, K], a_pages [P, S*16, K], scales [P, S*16] float32 for pages in 8 bits -> planes
    [programs, tile_rows, S*16]. Only rows of tiles that have tokens are written, and read again.
    """
    _, columns, features = a_pages.shape
    assert x.shape[1] == features
    assert x.stride(1) == 1
    assert a_pages.is_contiguous()
    assert scales is None or scales.is_contiguous()
    plan = plan or shrink_plan(work.tile_rows, columns, features, x.element_size())
    num_programs = max(work.max_items, plan.programs)
    shape = (num_programs, work.tile_rows, columns)
    planes = torch.empty(shape, dtype=torch.float32, device=x.device)
    shrink_kernel[(num_programs,)](
        planes,
        x,
        a_pages,
        planes if scales is None else scales,
        work.tokens,
        work.tile_starts,
        work.tile_counts,
        work.tile_items,
        work.item_tiles,
        work.item_pages,
        x.stride(0),
        work.max_tiles,
        K=features,
        COLUMNS=columns,
        ROWS=work.tile_rows,
        BLOCK_C=triton.next_power_of_2(columns),
        BLOCK_K=plan.block_k,
        PROGRAMS=plan.programs,
        MAX_SPLITS=plan.max_splits,
        HAS_SCALES=scales is not None,
        DOT_DTYPE=tl.float32 if interprets() else DOT_DTYPES[x.dtype],
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    return LoraPlanes(planes, triton.cdiv(features, plan.block_k), plan.programs, plan.max_splits)
