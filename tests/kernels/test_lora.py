"""shrink and expand against float64, with everything they must not read set to NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from branchline.kernels import ops

RANK = 16
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SLICES = [(24,), (24, 8, 8), (40, 40)]


@dataclass(frozen=True)
class Case:
    """Pages, inputs and the float64 answer; ``owner[t]`` lists token t's pages, () for none."""

    x: Tensor
    a_pages: Tensor
    b_pages: Tensor
    y: Tensor
    expected: Tensor


def make_case(
    owners: Sequence[tuple[int, ...]], slices: tuple[int, ...], dtype: torch.dtype, num_pages: int
) -> Case:
    torch.manual_seed(len(owners))
    features = 20
    a = torch.randn(num_pages, len(slices) * RANK, features).div(features**0.5).to(dtype)
    b = torch.randn(num_pages, RANK, sum(slices)).div(4).to(dtype)
    unused = sorted(set(range(num_pages)) - {page for pages in owners for page in pages})
    a[unused], b[unused] = torch.nan, torch.nan
    x = torch.randn(len(owners), features).to(dtype)
    y = torch.randn(len(owners), sum(slices)).to(dtype)
    for token, pages in enumerate(owners):
        if not pages:
            x[token] = torch.nan
    expected = y.double()
    for token, pages in enumerate(owners):
        for page in pages:
            expected[token] += page_delta(x[token].double(), a[page], b[page], slices)
    return Case(x, a, b, y, expected)


def page_delta(x: Tensor, a: Tensor, b: Tensor, slices: tuple[int, ...]) -> Tensor:
    parts, column = [], 0
    for index, size in enumerate(slices):
        hidden = a[index * RANK : (index + 1) * RANK].double() @ x
        parts.append(hidden @ b[:, column : column + size].double())
        column += size
    return torch.cat(parts)


def check(case: Case, slices: tuple[int, ...], routing: ops.LoraRouting) -> None:
    base = case.y.clone()
    untouched = case.x.isnan().any(1)
    hidden = ops.shrink(case.x, case.a_pages, routing)
    assert all(h.dtype == torch.float32 for h in hidden)
    ops.expand(hidden, case.b_pages, slices, routing, case.y)
    tolerance = TOLERANCE[case.x.dtype]
    torch.testing.assert_close(case.y.double(), case.expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(case.y[untouched], base[untouched])
    again = base.clone()
    ops.expand(ops.shrink(case.x, case.a_pages, routing), case.b_pages, slices, routing, again)
    assert torch.equal(again, case.y)


def span(start: int, stop: int) -> ops.Selection:
    return ops.Selection(start, stop)


def chosen(*rows: int) -> ops.Selection:
    return ops.Selection(rows[0], rows[-1] + 1, torch.tensor(rows))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slices", SLICES)
def test_runs(slices: tuple[int, ...], dtype: torch.dtype) -> None:
    """One page, several side by side, several apart; base rows between."""
    owners = [(3,)] * 2 + [()] + [(5, 6, 7)] * 4 + [(9, 1)] * 3 + [()] * 2
    runs = (
        ops.LoraRun(span(0, 2), span(3, 4)),
        ops.LoraRun(span(3, 7), span(5, 8)),
        ops.LoraRun(span(7, 10), chosen(9, 1)),
    )
    check(make_case(owners, slices, dtype, 11), slices, ops.LoraRouting(runs, ()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slices", SLICES)
def test_padded_tiles_over_a_span_with_holes(slices: tuple[int, ...], dtype: torch.dtype) -> None:
    """Pages 2 and 4 are read with page 3 between them, which belongs to no row and is NaN."""
    owners: list[tuple[int, ...]] = [(4,), (), (2,), (4,), (2,), (2,)]
    tiles = ops.LoraTiles(
        num_tiles=3,
        height=3,
        num_pages=1,
        pages=span(2, 5),
        tile_tokens=chosen(2, 4, 5, 0, 0, 0, 0, 3, 0),
        tokens=chosen(0, 2, 3, 4, 5),
        tile_rows=torch.tensor([6, 0, 7, 1, 2]),
    )
    check(make_case(owners, slices, dtype, 6), slices, ops.LoraRouting((), (tiles,)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slices", SLICES)
def test_tiles_of_gathered_pages(slices: tuple[int, ...], dtype: torch.dtype) -> None:
    """Two pages an adapter, one of them in two tiles; the tokens are a span."""
    owners: list[tuple[int, ...]] = [(), (6, 1), (0, 3), (6, 1), (6, 1), ()]
    tiles = ops.LoraTiles(
        num_tiles=3,
        height=2,
        num_pages=2,
        pages=chosen(6, 1, 6, 1, 0, 3),
        tile_tokens=chosen(1, 3, 4, 1, 2, 1),
        tokens=span(1, 5),
        tile_rows=torch.tensor([0, 4, 1, 2]),
    )
    check(make_case(owners, slices, dtype, 8), slices, ops.LoraRouting((), (tiles,)))


def test_tiles_in_token_order_and_runs_together() -> None:
    owners: list[tuple[int, ...]] = [(0,), (1,), (2,), (3, 4), (3, 4), ()]
    tiles = ops.LoraTiles(
        num_tiles=3,
        height=1,
        num_pages=1,
        pages=span(0, 3),
        tile_tokens=span(0, 3),
        tokens=span(0, 3),
        tile_rows=None,
    )
    routing = ops.LoraRouting((ops.LoraRun(span(3, 5), span(3, 5)),), (tiles,))
    check(make_case(owners, SLICES[1], torch.float32, 5), SLICES[1], routing)


def test_no_rows_no_writes() -> None:
    case = make_case([(), ()], SLICES[0], torch.float32, 2)
    routing = ops.LoraRouting((), ())
    assert ops.shrink(case.x, case.a_pages, routing) == ()
    check(case, SLICES[0], routing)


def test_a_selection_that_is_a_span_is_a_view() -> None:
    tensor = torch.randn(6, 2)
    assert span(0, 6).of(tensor) is tensor
    assert span(2, 5).of(tensor).data_ptr() == tensor[2].data_ptr()
    assert torch.equal(chosen(4, 1).of(tensor), tensor[[4, 1]])
