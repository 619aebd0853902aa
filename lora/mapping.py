"""Which rows of a step meet which adapter pages: worked out once a step, on the CPU.

Rows of one adapter that lie side by side, long or few enough, get GEMMs of their own (runs); all
other adapter rows are sorted by adapter and padded into tiles, one batched GEMM for all of them.
Rows of the base model are in neither. Where Triton's kernels run, they get packed work instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.ops import LoraRouting, LoraRun, LoraTiles, LoraWork, Selection, uses_kernels
from .bank import AdapterBank
from .indices import Array, Indices, is_span, spans
from .runs import Runs, merge_runs
from .work import build_work

MIN_RUN_ROWS = 16
"""From this many rows on a run is its own GEMM; below, one over padded tiles is faster."""

MAX_SHORT_RUNS = 2
"""Up to this many runs are each their own GEMM, however short."""

MAX_PADDING = 4
"""Tiles are as high as the most popular adapter asks unless that makes them this much padding."""

MAX_HOLES = 1.5
"""A span of pages is read in place, unused ones too, up to this multiple of those in use."""

Pages = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterMapping:
    """One step's routing by group; groups that no adapter of the step touches are absent."""

    groups: Mapping[str, LoraRouting | LoraWork]


def build_mapping(
    segment_slots: Sequence[int | None], segment_lengths: Sequence[int], bank: AdapterBank
) -> AdapterMapping | None:
    """Route a step whose tokens are segments of one request each, in order.

    A segment's slot is None for the base model. None if no row carries an adapter. Groups whose
    pages lie alike (they do for adapters on all linears) share one routing.
    """
    if all(slot is None for slot in segment_slots):
        return None
    if any(uses_kernels(pool.a) for pool in bank.pools.values()):
        work = build_work(segment_slots, segment_lengths, bank)
        return AdapterMapping(work) if work else None
    runs = merge_runs(segment_slots, segment_lengths)
    num_rows = int(runs.lengths.sum())
    if num_rows == 0:
        return None
    slots = [int(slot) for slot in np.unique(runs.slots)]
    layouts = {name: tuple(pool.pages(slot) for slot in slots) for name, pool in bank.pools.items()}
    distinct = {layout for layout in layouts.values() if any(layout)}
    capacity = sum(8 * num_rows + 2 * sum(map(len, layout)) for layout in distinct)
    indices = Indices(capacity, bank.device)
    routings = {
        layout: _route(runs, dict(zip(slots, layout, strict=True)), indices)
        for layout in sorted(distinct)
    }
    indices.send()
    groups = {name: routings[layout] for name, layout in layouts.items() if layout in routings}
    return AdapterMapping(groups) if groups else None


def _route(runs: Runs, pages: dict[int, Pages], indices: Indices) -> LoraRouting:
    held = np.array([len(pages[int(slot)]) for slot in runs.slots], dtype=np.int64)
    direct = (runs.lengths >= MIN_RUN_ROWS) | (np.count_nonzero(held) <= MAX_SHORT_RUNS)
    alone = runs.where(direct & (held > 0))
    lora_runs = tuple(
        LoraRun(Selection(start, start + length), indices.select(np.array(pages[slot])))
        for slot, start, length in zip(
            alone.slots.tolist(), alone.starts.tolist(), alone.lengths.tolist(), strict=True
        )
    )
    counts = np.unique(held[~direct & (held > 0)]).tolist()
    tiles = tuple(
        _tile(runs.where(~direct & (held == count)), pages, count, indices) for count in counts
    )
    return LoraRouting(lora_runs, tiles)


def _tile(runs: Runs, pages: dict[int, Pages], num_pages: int, indices: Indices) -> LoraTiles:
    """Tiles for the rows of adapters that have ``num_pages`` pages each."""
    slots, which = np.unique(runs.slots, return_inverse=True)
    table = np.array([pages[int(slot)] for slot in slots], dtype=np.int64)
    counts = np.bincount(which, weights=runs.lengths).astype(np.int64)
    height, first_tile, num_tiles, selection = _lay_out(table, counts, indices)
    # Each row's tile row: its adapter's first tile, then its number among the adapter's rows.
    owner = np.repeat(which, runs.lengths)
    tokens = spans(runs.starts, runs.lengths)
    order = np.argsort(owner, kind="stable")
    number = np.empty_like(order)
    number[order] = spans(np.zeros_like(counts), counts)
    tile_rows = first_tile[owner] * height + number
    tile_tokens = np.full(num_tiles * height, tokens[0], dtype=np.int64)
    tile_tokens[tile_rows] = tokens
    return LoraTiles(
        num_tiles=num_tiles,
        height=height,
        num_pages=num_pages,
        pages=selection,
        tile_tokens=indices.select(tile_tokens),
        tokens=indices.select(tokens),
        tile_rows=None
        if is_span(tile_rows) and tile_tokens.size == tokens.size
        else indices.put(tile_rows),
    )


def _lay_out(
    table: np.ndarray[tuple[int, int], np.dtype[np.int64]], counts: Array, indices: Indices
) -> tuple[int, Array, int, Selection]:
    """Tile height, each adapter's first tile, the number of tiles and the pages they read.

    table [adapters, num_pages] and counts [adapters]. If the pages nearly fill a span, tiles are
    that span, so that no weight is copied; else each adapter gets the tiles its rows need.
    """
    num_adapters, num_pages = table.shape
    height = int(counts.max())
    if height * num_adapters <= MAX_PADDING * int(counts.sum()):
        low, high = int(table.min()), int(table.max()) + 1
        first_tile, odd = np.divmod(table[:, 0] - low, num_pages)
        whole = not odd.any() and (np.diff(table, axis=1) == 1).all()
        if whole and high - low <= MAX_HOLES * table.size:
            return height, first_tile, (high - low) // num_pages, Selection(low, high)
        tiles_each = np.ones_like(counts)
    else:
        height = -(-int(counts.sum()) // num_adapters)
        tiles_each = -(-counts // height)
    first_tile = np.cumsum(tiles_each) - tiles_each
    pages = np.repeat(table, tiles_each, axis=0).reshape(-1)
    return height, first_tile, int(tiles_each.sum()), indices.select(pages)
