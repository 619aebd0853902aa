"""LoRA over rows that carry different adapters: shrink to the rank, expand onto the rows.

Adapter weights lie in pages of R ranks. A page of a group with S slices (q, k, v are the three
slices of ``qkv``) holds ``a_pages[p]`` [S*R, K], slice by slice, and ``b_pages[p]`` [R, N], the
slices' columns side by side; slice s of B only ever meets slice s of A. Pages in 8 bits come with
``scales[p]`` [S*R] float32, by which each rank's part is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of a first dimension: ``start`` to ``stop``, or those of ``index`` [n] int64.

    ``index`` is None when the rows are exactly that span: it is then a view and not a copy.
    """

    start: int
    stop: int
    index: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The selected rows of ``tensor``."""
        if self.index is not None:
            return tensor.index_select(0, self.index)
        if self.start == 0 and self.stop == tensor.shape[0]:
            return tensor
        return tensor.narrow(0, self.start, self.stop - self.start)

    def put(self, tensor: Tensor, rows: Tensor) -> None:
        """Write the selected rows of ``tensor``, each of which is selected once."""
        if self.index is None:
            self.of(tensor).copy_(rows)
        else:
            tensor.index_copy_(0, self.index, rows.to(tensor.dtype))


@dataclass(frozen=True, slots=True)
class LoraRun:
    """A span of tokens of one adapter, worth a GEMM of its own, in place."""

    tokens: Selection
    pages: Selection


@dataclass(frozen=True, slots=True)
class LoraTiles:
    """Scattered tokens of adapters with equally many pages, as tiles of ``height`` rows.

    Tile i works with the i-th ``num_pages`` pages of ``pages`` on the tokens
    ``tile_tokens[i*height : (i+1)*height]``; entries that pad a tile name any token and their
    result is not read. ``tokens`` are the tokens to add to, each once, and ``tile_rows`` where
    each one's delta is found (None: row by row).
    """

    num_tiles: int
    height: int
    num_pages: int
    pages: Selection
    tile_tokens: Selection
    tokens: Selection
    tile_rows: Tensor | None


@dataclass(frozen=True, slots=True)
class LoraRouting:
    """Which tokens of a step meet which pages of a module group; no token comes up twice."""

    runs: tuple[LoraRun, ...]
    tiles: tuple[LoraTiles, ...]


def shrink(
    x: Tensor, a_pages: Tensor, routing: LoraRouting, scales: Tensor | None = None
) -> tuple[Tensor, ...]:
    """h = x A^T (* scales) in float32, for each run and then each batch of tiles.

    x [T, K], a_pages [P, S*R, K], scales [P, S*R] float32 for pages in 8 bits -> a run's
    [tokens, n*S*R], tiles' [num_tiles, height, n*S*R], n being the adapter's pages. All of it is
    float32 whatever the pages are, so that the sum over the ranks is rounded once, when it is
    added.
    """
    features = x.shape[1]
    hidden = []
    for run in routing.runs:
        a = run.pages.of(a_pages).view(-1, features).float()
        h = torch.mm(run.tokens.of(x).float(), a.t())
        hidden.append(h if scales is None else h.mul_(run.pages.of(scales).view(-1)))
    for tiles in routing.tiles:
        a = tiles.pages.of(a_pages).view(tiles.num_tiles, -1, features).float()
        tile_x = tiles.tile_tokens.of(x).view(tiles.num_tiles, tiles.height, features).float()
        h = torch.bmm(tile_x, a.transpose(1, 2))
        if scales is not None:
            h.mul_(tiles.pages.of(scales).view(tiles.num_tiles, 1, -1))
        hidden.append(h)
    return tuple(hidden)


def expand(
    hidden: tuple[Tensor, ...],
    b_pages: Tensor,
    slice_sizes: tuple[int, ...],
    routing: LoraRouting,
    y: Tensor,
) -> None:
    """y[t, slice s] += h[t, slice s] B[slice s] on the routed tokens; no other row is written.

    hidden as from ``shrink``, b_pages [P, R, N], y [T, N] with N = sum(slice_sizes).
    """
    page_rank, features = b_pages.shape[1:]
    num_runs = len(routing.runs)
    for run, h in zip(routing.runs, hidden[:num_runs], strict=True):
        b = run.pages.of(b_pages).view(-1, features)
        for y_slice, h_slice, b_slice in _by_slice(run.tokens.of(y), h, b, slice_sizes, page_rank):
            _add_product(y_slice, h_slice, b_slice)
    for tiles, h in zip(routing.tiles, hidden[num_runs:], strict=True):
        b = tiles.pages.of(b_pages).view(tiles.num_tiles, -1, features)
        for y_slice, h_slice, b_slice in _by_slice(y, h, b, slice_sizes, page_rank):
            _add_rows(y_slice, tiles, torch.bmm(h_slice, b_slice.float()).flatten(0, 1))


def _by_slice(
    y: Tensor, h: Tensor, b: Tensor, slice_sizes: tuple[int, ...], page_rank: int
) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Columns of y, ranks of h [..., n*S*R] and columns of b [..., n*R, N], slice by slice."""
    num_slices = len(slice_sizes)
    if num_slices == 1:
        return ((y, h, b),)
    if h.shape[-1] == num_slices * page_rank:
        ranks = h.split_with_sizes((page_rank,) * num_slices, -1)
    else:
        pages = h.view(*h.shape[:-1], -1, num_slices, page_rank)
        ranks = tuple(part.flatten(-2) for part in pages.unbind(-2))
    y_slices, b_slices = y.split_with_sizes(slice_sizes, 1), b.split_with_sizes(slice_sizes, -1)
    return zip(y_slices, ranks, b_slices, strict=True)


def _add_product(y: Tensor, h: Tensor, b: Tensor) -> None:
    """y += h b, rounded once."""
    if y.dtype == b.dtype == torch.float32:
        y.addmm_(h, b)
    else:
        y.add_(torch.mm(h, b.float()))


def _add_rows(y: Tensor, tiles: LoraTiles, delta: Tensor) -> None:
    """y[tiles.tokens] += delta[tiles.tile_rows]; each token is there once."""
    if tiles.tile_rows is not None:
        delta = delta.index_select(0, tiles.tile_rows)
    if tiles.tokens.index is None:
        tiles.tokens.of(y).add_(delta)
    else:
        # index_add_ would start threads on a CPU even for a few rows, which costs more than this.
        y.index_copy_(0, tiles.tokens.index, tiles.tokens.of(y).add_(delta))
