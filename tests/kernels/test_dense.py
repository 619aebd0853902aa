"""scale_rows and norm_rows: the routed rows by their own vectors, all others as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.ops import Selection, VectorRows

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}

ROUTINGS: dict[str, tuple[VectorRows, ...]] = {
    "a run": (VectorRows(Selection(2, 7), 3),),
    "everything": (VectorRows(Selection(0, 12), 1),),
    "two runs": (VectorRows(Selection(0, 1), 4), VectorRows(Selection(1, 12), 0)),
    "scattered": (VectorRows(Selection(1, 12, torch.tensor([1, 5, 11])), torch.tensor([4, 0, 4])),),
    "a span, each its own": (VectorRows(Selection(3, 6), torch.tensor([1, 3, 0])),),
    "both": (
        VectorRows(Selection(4, 9), 3),
        VectorRows(Selection(0, 12, torch.tensor([0, 11])), torch.tensor([1, 4])),
    ),
}
FREE = 2
"""A row of the vectors that nobody has; what lies there is garbage."""


def vectors(width: int) -> Tensor:
    """[5, width], columns of a wider matrix, as the pool has them."""
    made = torch.randn(5, width + 7, generator=torch.Generator().manual_seed(width))
    made[FREE] = torch.nan
    return made[:, 3 : 3 + width]


def pages_of(routing: tuple[VectorRows, ...]) -> dict[int, int]:
    """Each routed token's row of the vectors."""
    pages = {}
    for part in routing:
        tokens = part.tokens.of(torch.arange(12)).tolist()
        which = part.pages
        each = [which] * len(tokens) if isinstance(which, int) else which.tolist()
        pages |= dict(zip(tokens, each, strict=True))
    return pages


def assert_others_untouched(y: Tensor, before: Tensor, routing: tuple[VectorRows, ...]) -> None:
    others = [token for token in range(12) if token not in pages_of(routing)]
    integers = {4: torch.int32, 2: torch.int16}[y.element_size()]
    assert torch.equal(y[others].view(integers), before[others].view(integers))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ROUTINGS)
def test_scaled_rows(name: str, dtype: torch.dtype) -> None:
    routing, scales, shifts = ROUTINGS[name], vectors(5), vectors(5) * 2
    y = torch.randn(12, 5).to(dtype)
    y[[2, 10], 1] = -0.0
    before = y.clone()
    ops.scale_rows(y, scales, shifts, routing)
    for token, page in pages_of(routing).items():
        exact = before[token].double() * scales[page].double() + shifts[page].double()
        torch.testing.assert_close(y[token].double(), exact, rtol=TOLERANCE[dtype], atol=1e-6)
    assert_others_untouched(y, before, routing)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("name", ROUTINGS)
def test_normed_rows(name: str, heads: int | None, offset: float, dtype: torch.dtype) -> None:
    routing, weights = ROUTINGS[name], vectors(6)
    shape = (12, 6) if heads is None else (12, heads, 6)
    x, y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    before = y.clone()
    ops.norm_rows(y, x, weights, 1e-6, offset, routing)
    for token, page in pages_of(routing).items():
        wide = x[token].double()
        normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        exact = normed * (weights[page].double() + offset)
        tolerance = 2 * TOLERANCE[dtype]
        torch.testing.assert_close(y[token].double(), exact, rtol=tolerance, atol=tolerance)
    assert_others_untouched(y, before, routing)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_bases_own_weights_change_nothing(dtype: torch.dtype, offset: float) -> None:
    """A row that shares a step with another's norms is normed again, to the same bits."""
    x, weight = torch.randn(12, 64).to(dtype), torch.randn(64).to(dtype)
    y = ops.rms_norm(x, weight, 1e-6, offset)
    again = torch.full_like(y, torch.nan)
    routing = (VectorRows(Selection(0, 12), 0),)
    ops.norm_rows(again, x, weight.float()[None], 1e-6, offset, routing)
    assert torch.equal(again, y)
    ops.scale_rows(again, torch.ones(1, 64), torch.zeros(1, 64), routing)
    assert torch.equal(again, y)
