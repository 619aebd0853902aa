"""Block sizes of the LoRA kernels, by the kind of step and the size of the linear.

The figures are reasoned for an H200 and not measured: a program streams its part of a page
through shared memory in stages that leave room for two programs a multiprocessor, and there are
about two programs for each of its 132. ``candidates`` are what a measurement may try instead.

No plan of the expand kernel has blocks of 128 columns: others had NaN from such a kernel on
Hopper, and 64 (many blocks for few tiles) and 256 (long rows to write) cover what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf

from ..backend import interprets


@dataclass(frozen=True, slots=True)
class ShrinkPlan:
    """``block_k`` features a step, of two bytes each; at most ``max_splits`` programs an item.

    Items are split until about ``programs`` run: so few adapters keep the whole GPU busy, and
    many need no sums over planes.
    """

    block_k: int
    max_splits: int
    programs: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class ExpandPlan:
    """``block_n`` output features a program."""

    block_n: int
    num_warps: int
    num_stages: int


# Rows a tile, columns of A's pages (16 a slice) and features in, each up to this -> plan.
SHRINK_PLANS = (
    # rows columns features            block_k splits programs warps stages
    (16, 16, 2048, ShrinkPlan(128, 8, 264, 4, 4)),
    (16, 16, inf, ShrinkPlan(256, 16, 264, 4, 4)),
    (16, inf, 2048, ShrinkPlan(128, 8, 264, 4, 4)),
    (16, inf, inf, ShrinkPlan(128, 16, 264, 4, 4)),
    (inf, 16, inf, ShrinkPlan(128, 4, 264, 4, 3)),
    (inf, inf, inf, ShrinkPlan(64, 4, 264, 4, 4)),
)

# Rows a tile, tiles there is room for and features out, each up to this -> plan.
EXPAND_PLANS = (
    # rows tiles features     block_n warps stages
    (16, 4, 16384, ExpandPlan(64, 4, 2)),
    (inf, inf, inf, ExpandPlan(256, 4, 2)),
)

INTERPRETED_SHRINK = ShrinkPlan(16, 3, 12, 1, 1)
"""Small blocks and few programs, so that small tensors too are cut into several."""

INTERPRETED_EXPAND = ExpandPlan(32, 1, 1)


def shrink_plan(tile_rows: int, columns: int, features: int, itemsize: int = 2) -> ShrinkPlan:
    """The plan for tiles of x [tile_rows, features] times pages of A [columns, features]."""
    if interprets():
        return INTERPRETED_SHRINK
    plan = next(
        plan
        for rows, most_columns, most_features, plan in SHRINK_PLANS
        if tile_rows <= rows and columns <= most_columns and features <= most_features
    )
    return ShrinkPlan(
        max(16, plan.block_k * 2 // itemsize),
        plan.max_splits,
        plan.programs,
        plan.num_warps,
        plan.num_stages,
    )


def expand_plan(tile_rows: int, max_tiles: int, features: int) -> ExpandPlan:
    """The plan for tiles of y [tile_rows, features]."""
    if interprets():
        return INTERPRETED_EXPAND
    return next(
        plan
        for rows, most_tiles, most_features, plan in EXPAND_PLANS
        if tile_rows <= rows and max_tiles <= most_tiles and features <= most_features
    )


def candidates(tile_rows: int) -> Iterator[tuple[ShrinkPlan, ExpandPlan]]:
    """Pairs of plans worth measuring for such tiles; the largest don't compile for all shapes."""
    splits = (4, 8, 16) if tile_rows <= 16 else (1, 2, 4)
    shrinks = [
        ShrinkPlan(block_k, split, programs, 4, stages)
        for block_k, split, programs, stages in product(
            (64, 128, 256) if tile_rows <= 16 else (64, 128), splits, (132, 264, 528), (3, 4)
        )
    ]
    expands = [
        ExpandPlan(block_n, warps, stages)
        for block_n, warps, stages in product((64, 256), (4, 8), (1, 2, 3))
    ]
    default = shrink_plan(tile_rows, 16, 4096), expand_plan(tile_rows, 64, 4096)
    yield from ((shrink, default[1]) for shrink in shrinks)
    yield from ((default[0], expand) for expand in expands)
