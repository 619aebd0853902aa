"""LoRA over rows that carry different adapters: shrink to the rank, expand onto the rows.

Adapter weights lie in pages of R ranks. A page of a group with S slices (q, k, v are the three
slices of ``qkv``) holds ``a_pages[p]`` [S*R, K], slice by slice, and ``b_pages[p]`` [R, N], the
slices' columns side by side; slice s of B only ever meets slice s of A.
"""

from __future__ import annotations

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
        return tensor[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class LoraRun:
    """Tokens ``start`` to ``stop`` of one adapter: worth a GEMM of their own, in place."""

    start: int
    stop: int
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


def shrink(x: Tensor, a_pages: Tensor, routing: LoraRouting) -> tuple[Tensor, ...]:
    """h = x A^T in float32, for each run and then each batch of tiles.

    x [T, K], a_pages [P, S*R, K] -> a run's [tokens, n*S*R], tiles' [num_tiles, height, n*S*R],
    n being the adapter's pages. All of it is float32 whatever the pages are, so that the sum over
    the ranks is rounded once, when it is added.
    """
    features = x.shape[1]
    hidden = []
    for run in routing.runs:
        a = run.pages.of(a_pages).reshape(-1, features).float()
        hidden.append(torch.mm(x[run.start : run.stop].float(), a.t()))
    for tiles in routing.tiles:
        a = tiles.pages.of(a_pages).view(tiles.num_tiles, -1, features).float()
        tile_x = tiles.tile_tokens.of(x).view(tiles.num_tiles, tiles.height, features).float()
        hidden.append(torch.bmm(tile_x, a.transpose(1, 2)))
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
    num_runs = len(routing.runs)
    for run, h in zip(routing.runs, hidden[:num_runs], strict=True):
        b = run.pages.of(b_pages)
        _add_run(h, b.reshape(-1, b.shape[2]), b.shape[1], slice_sizes, y[run.start : run.stop])
    for tiles, h in zip(routing.tiles, hidden[num_runs:], strict=True):
        b = tiles.pages.of(b_pages)
        b = b.view(tiles.num_tiles, -1, b.shape[2])
        _add_tiles(h, b, b_pages.shape[1], slice_sizes, tiles, y)


def _add_run(h: Tensor, b: Tensor, page_rank: int, slice_sizes: tuple[int, ...], y: Tensor) -> None:
    """h [tokens, n*S*R], b [n*R, N], y [tokens, N]."""
    column = 0
    for index, size in enumerate(slice_sizes):
        h_slice, b_slice, y_slice = h, b, y
        if len(slice_sizes) > 1:
            h_slice = _slice_ranks(h, page_rank, len(slice_sizes), index)
            b_slice, y_slice = b.narrow(1, column, size), y.narrow(1, column, size)
        if y.dtype == b.dtype == torch.float32:
            y_slice.addmm_(h_slice, b_slice)
        else:
            y_slice.add_(torch.mm(h_slice, b_slice.float()))
        column += size


def _add_tiles(
    h: Tensor,
    b: Tensor,
    page_rank: int,
    slice_sizes: tuple[int, ...],
    tiles: LoraTiles,
    y: Tensor,
) -> None:
    """h [num_tiles, height, n*S*R], b [num_tiles, n*R, N], y [T, N]."""
    column = 0
    for index, size in enumerate(slice_sizes):
        h_slice = _slice_ranks(h, page_rank, len(slice_sizes), index)
        delta = torch.bmm(h_slice, b.narrow(2, column, size).float()).flatten(0, 1)
        if tiles.tile_rows is not None:
            delta = delta.index_select(0, tiles.tile_rows)
        _add_rows(y.narrow(1, column, size), tiles.tokens, delta)
        column += size


def _add_rows(y: Tensor, tokens: Selection, delta: Tensor) -> None:
    """y[tokens] += delta; a copy back, since ``index_add_`` starts threads even for a few rows."""
    if tokens.index is None:
        tokens.of(y).add_(delta)
    else:
        y.index_copy_(0, tokens.index, tokens.of(y).add_(delta))


def _slice_ranks(h: Tensor, page_rank: int, num_slices: int, index: int) -> Tensor:
    """The ranks of one slice, [..., n*S*R] -> [..., n*R]."""
    if num_slices == 1:
        return h
    if h.shape[-1] == num_slices * page_rank:
        return h.narrow(-1, index * page_rank, page_rank)
    pages = h.view(*h.shape[:-1], -1, num_slices, page_rank)
    return pages.select(-2, index).flatten(-2)
