"""A step's adapter work for the kernels: laid out once a step, on the CPU, for one copy.

Tokens are sorted by adapter slot and cut into tiles; each group adds the pages that its tiles
meet. All of it goes into one int32 buffer of fixed capacity:

    [ tokens | tile_starts | tile_counts | tile_items, item_tiles, item_pages of each group ... ]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.ops import LoraWork
from .bank import NO_PAGE, AdapterBank, GroupPool
from .indices import Array, spans

DECODE_TILE_ROWS = 16
"""The least rows that a tensor core multiplies at once."""

PREFILL_TILE_ROWS = 64

MIN_PREFILL_ROWS = 256
"""From so many rows of one adapter on tiles are higher: its pages are then read less often."""

MIN_WHOLE_ROWS = 256
"""From so many tokens on a step may write the adapters' part before the base model's."""

BASE = -1
"""The slot of rows without an adapter."""

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class WorkCapacity:
    """What a buffer of adapter work has room for; ``max_items`` is for each group.

    ``whole``: the base model's rows get tiles too, which ``max_rows`` and ``max_tiles`` count.
    """

    max_rows: int
    max_tiles: int
    max_items: int
    tile_rows: int
    whole: bool = False

    def size(self, num_groups: int) -> int:
        """int32 numbers in a buffer."""
        end: int = _slices(self, num_groups)[-1].stop
        return -(-end // 4) * 4


@dataclass(frozen=True, slots=True)
class StepTiles:
    """The tiles of a step: its tokens [rows] in their order, and three numbers [tiles] each."""

    tokens: Array
    starts: Array
    counts: Array
    slots: Array


@dataclass(frozen=True, slots=True)
class GroupItems:
    """A group's items: each one's tile and page [items], and where those of a tile end [tiles]."""

    ends: Array
    tiles: Array
    pages: Ints


def decode_capacity(num_rows: int, bank: AdapterBank) -> WorkCapacity:
    """Room for any step of ``num_rows`` decodes, whichever adapters of the bank they carry."""
    num_slots = min(num_rows, bank.num_slots)
    max_tiles = num_slots + (num_rows - num_slots) // DECODE_TILE_ROWS
    max_items = 0
    for pool in bank.pools.values():
        most = pool.page_table.shape[1]
        held = min(pool.num_pages, num_slots * most)
        again = (num_rows - 1) // DECODE_TILE_ROWS * most  # tiles beyond an adapter's first
        max_items = max(max_items, min(max_tiles * most, held + again))
    return WorkCapacity(num_rows, max_tiles, max(max_items, 1), DECODE_TILE_ROWS)


def pack_work(
    segment_slots: Sequence[int | None],
    segment_lengths: Sequence[int],
    bank: AdapterBank,
    capacity: WorkCapacity,
    out: Ints,
) -> bool:
    """Lay a step of segments out in ``out`` [capacity.size(number of the bank's pools)].

    A segment's slot is None for the base model. False, and ``out`` is left as it is, if there is
    too little room.
    """
    tiles = tile_step(segment_slots, segment_lengths, capacity.tile_rows, capacity.whole)
    items = [_items(pool, tiles.slots) for pool in bank.pools.values()]
    max_items = max((len(group.pages) for group in items), default=0)
    fits = (
        len(tiles.tokens) <= capacity.max_rows
        and len(tiles.starts) <= capacity.max_tiles
        and max_items <= capacity.max_items
    )
    if fits:
        _write(tiles, items, capacity, out)
    return fits


def work_views(
    buffer: Tensor, capacity: WorkCapacity, group_names: Sequence[str]
) -> dict[str, LoraWork]:
    """What lies in a device copy of a packed buffer; the names are the bank's pools, in order."""
    parts = [buffer[part] for part in _slices(capacity, len(group_names))]
    tokens, tile_starts, tile_counts, *rest = parts
    return {
        name: LoraWork(
            *(tokens, tile_starts, tile_counts, tile_items, item_tiles, item_pages),
            tile_rows=capacity.tile_rows,
            whole=capacity.whole,
        )
        for name, tile_items, item_tiles, item_pages in zip(
            group_names, rest[::3], rest[1::3], rest[2::3], strict=True
        )
    }


def build_work(
    segment_slots: Sequence[int | None], segment_lengths: Sequence[int], bank: AdapterBank
) -> dict[str, LoraWork]:
    """The work of a step that is not captured, on the bank's device, by group.

    Groups that no adapter of the step touches are absent.
    """
    tile_rows, whole = choose_tiling(segment_slots, segment_lengths)
    tiles = tile_step(segment_slots, segment_lengths, tile_rows, whole)
    items = {name: _items(pool, tiles.slots) for name, pool in bank.pools.items()}
    items = {name: group for name, group in items.items() if len(group.pages)}
    if not items:
        return {}
    capacity = WorkCapacity(
        _round_up(len(tiles.tokens)),
        _round_up(len(tiles.starts)),
        _round_up(max(len(group.pages) for group in items.values())),
        tile_rows,
        whole,
    )
    on_gpu = bank.device.type == "cuda"
    host = torch.empty(capacity.size(len(items)), dtype=torch.int32, pin_memory=on_gpu)
    _write(tiles, list(items.values()), capacity, host.numpy())
    return work_views(host.to(bank.device, non_blocking=True), capacity, list(items))


def choose_tiling(
    segment_slots: Sequence[int | None], segment_lengths: Sequence[int]
) -> tuple[int, bool]:
    """Rows a tile, and whether base rows get tiles too, so that the kernels write every row.

    They had better do that in long steps in which at least every other row has an adapter: adding
    to what the base model wrote reads and writes those rows, writing first writes all rows once
    (the base GEMM reads them while it multiplies).
    """
    rows: dict[int, int] = {}
    for slot, length in zip(segment_slots, segment_lengths, strict=True):
        if slot is not None:
            rows[slot] = rows.get(slot, 0) + length
    is_long = max(rows.values(), default=0) >= MIN_PREFILL_ROWS
    num_tokens = sum(segment_lengths)
    whole = num_tokens >= MIN_WHOLE_ROWS and 2 * sum(rows.values()) >= num_tokens
    return PREFILL_TILE_ROWS if is_long else DECODE_TILE_ROWS, whole


def tile_step(
    segment_slots: Sequence[int | None],
    segment_lengths: Sequence[int],
    tile_rows: int,
    whole: bool = False,
) -> StepTiles:
    """Sort the tokens by slot, in step order within one, and cut each slot's into tiles."""
    slots = np.array([BASE if slot is None else slot for slot in segment_slots], dtype=np.int64)
    lengths = np.array(segment_lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    chosen = np.flatnonzero((lengths > 0) & ((slots != BASE) | whole))
    chosen = chosen[np.argsort(slots[chosen], kind="stable")]
    slots, starts, lengths = slots[chosen], starts[chosen], lengths[chosen]
    first = np.flatnonzero(np.diff(slots, prepend=BASE - 1))
    rows = np.add.reduceat(lengths, first) if first.size else lengths
    tiles_each = -(-rows // tile_rows)
    begin = np.repeat(np.cumsum(rows) - rows, tiles_each)
    offset = spans(np.zeros_like(rows), tiles_each) * tile_rows
    return StepTiles(
        tokens=spans(starts, lengths),
        starts=begin + offset,
        counts=np.minimum(np.repeat(rows, tiles_each) - offset, tile_rows),
        slots=np.repeat(slots[first], tiles_each),
    )


def _items(pool: GroupPool, slots: Array) -> GroupItems:
    """The items of tiles with these slots [tiles]."""
    counts = np.where(slots == BASE, 0, pool.page_counts[slots])
    tiles = np.repeat(np.arange(len(slots)), counts)
    place = spans(np.zeros_like(counts), counts)
    return GroupItems(np.cumsum(counts), tiles, pool.page_table[slots[tiles], place])


def _write(
    tiles: StepTiles, items: Sequence[GroupItems], capacity: WorkCapacity, out: Ints
) -> None:
    """Fill a buffer that is known to have room."""
    out[:] = 0
    tokens, starts, counts, *groups = (out[part] for part in _slices(capacity, len(items)))
    num_tiles = len(tiles.starts)
    tokens[: len(tiles.tokens)] = tiles.tokens
    starts[:num_tiles] = tiles.starts
    counts[:num_tiles] = tiles.counts
    for group, tile_items, item_tiles, item_pages in zip(
        items, groups[::3], groups[1::3], groups[2::3], strict=True
    ):
        num_items = len(group.pages)
        tile_items[1 : num_tiles + 1] = group.ends
        tile_items[num_tiles + 1 :] = num_items
        item_tiles[:num_items] = group.tiles
        item_pages[:num_items] = group.pages
        item_pages[num_items:] = NO_PAGE


def _slices(capacity: WorkCapacity, num_groups: int) -> list[slice]:
    """Where each array lies; all begin at a multiple of 16 bytes, as Triton likes pointers."""
    common = [capacity.max_rows, capacity.max_tiles, capacity.max_tiles]
    each = [capacity.max_tiles + 1, capacity.max_items, capacity.max_items]
    found, start = [], 0
    for size in common + each * num_groups:
        found.append(slice(start, start + size))
        start += -(-size // 4) * 4
    return found


def _round_up(count: int) -> int:
    """To a power of two, so that few sizes come up; at least 4."""
    return max(4, 1 << (count - 1).bit_length())
