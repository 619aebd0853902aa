"""The adapter work of a step as the kernels take it: tokens in tiles, pages in items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lora import LoraRouting, LoraTiles, Selection


@dataclass(frozen=True, slots=True)
class LoraWork:
    """Which tokens of a step meet which pages of a module group; int32, of fixed capacity.

    A tile is up to ``tile_rows`` tokens of one adapter, an item one tile and one of its
    adapter's pages. Every number that counts is in the tensors, so that a captured CUDA graph
    serves any step that fits them. No token comes up twice. Tokens and tiles are common to all
    groups of a step.

        tokens   [ 4 9 | 0 1 2 | 7 ]       tile_starts [0 2 5]  tile_counts [2 3 1]
        items    [ 0:6 0:1 | 1:3 | ]       item_tiles  [0 0 1]  item_pages  [6 1 3]
                                           tile_items  [0 2 3 3]
    """

    tokens: Tensor  # [max_rows], tile by tile
    tile_starts: Tensor  # [max_tiles], where a tile's tokens begin in ``tokens``
    tile_counts: Tensor  # [max_tiles], how many they are; 0: no tile
    tile_items: Tensor  # [max_tiles + 1], tile i has the items from entry i to entry i + 1
    item_tiles: Tensor  # [max_items]
    item_pages: Tensor  # [max_items], -1: no item
    tile_rows: int
    whole: bool = False
    """The tiles hold all rows of the step: those of the base model too, without items."""

    @property
    def max_tiles(self) -> int:
        """Tiles that there is room for."""
        return self.tile_counts.shape[0]

    @property
    def max_items(self) -> int:
        """Items that there is room for."""
        return self.item_pages.shape[0]


@dataclass(frozen=True, slots=True)
class LoraPlanes:
    """x A^T as the shrink kernel leaves it: an item's sum is that of ``splits`` planes in a row.

    How many that is depends on the step's items: both kernels work it out from these numbers.
    """

    planes: Tensor  # [programs, tile_rows, S*16] float32
    k_steps: int
    programs: int
    max_splits: int


def as_routing(work: LoraWork) -> LoraRouting:
    """The same work as the plain PyTorch ops take it; reads the tensors, so for the CPU only."""
    firsts = work.tile_items.tolist()
    tiles = []
    for tile, (start, count) in enumerate(
        zip(work.tile_starts.tolist(), work.tile_counts.tolist(), strict=True)
    ):
        pages = work.item_pages[firsts[tile] : firsts[tile + 1]].long()
        if count and len(pages):
            tokens = _selection(work.tokens[start : start + count].long())
            tiles.append(
                LoraTiles(1, count, len(pages), _selection(pages), tokens, tokens, tile_rows=None)
            )
    return LoraRouting((), tuple(tiles))


def _selection(index: Tensor) -> Selection:
    first, stop = int(index[0]), int(index[-1]) + 1
    is_span = torch.equal(index, torch.arange(first, first + len(index)))
    return Selection(first, stop, None if is_span else index)
