"""scale_rows and norm_rows: routed rows by their own vectors, in any way a step routes them."""

from __future__ import annotations

import pytest
import torch
from dense_parts import random_vectors
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.ops import Selection, VectorRows
from branchline.lora.dense import DensePool
from branchline.lora.dense_mapping import build_step_dense
from branchline.lora.shapes import ModuleShapes

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
NUM_TOKENS, NUM_PAGES, FREE = 33, 5, 2
"""What lies in the free page is garbage."""

LEFT_ALONE = [0, 7, 8, 20]
"""Tokens that no routing below has."""


def routing(name: str, device: torch.device) -> tuple[VectorRows, ...]:
    def index(*numbers: int) -> Tensor:
        return torch.tensor(numbers, device=device)

    scattered = VectorRows(Selection(1, 32, index(31, 1, 9)), index(4, 0, 4))
    return {
        "a run": (VectorRows(Selection(9, 20), 3),),
        "scattered": (scattered,),
        "a span, each its own": (VectorRows(Selection(3, 6), index(1, 3, 0)),),
        "scattered, one for all": (VectorRows(Selection(2, 30, index(29, 2)), 1),),
        "all at once": (
            VectorRows(Selection(10, 20), 3),
            VectorRows(Selection(21, 22), 0),
            scattered,
        ),
    }[name]


ROUTINGS = (
    "a run",
    "scattered",
    "a span, each its own",
    "scattered, one for all",
    "all at once",
)


def vectors(width: int, seed: int, device: torch.device) -> Tensor:
    """[pages, width], columns of a wider matrix, as the pool has them."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(NUM_PAGES, width + 7, generator=generator)
    made[FREE] = torch.nan
    return made.to(device)[:, 3 : 3 + width]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pages_of(routed: tuple[VectorRows, ...]) -> dict[int, int]:
    """Each routed token's page."""
    pages = {}
    for part in routed:
        index, which = part.tokens.index, part.pages
        span = range(part.tokens.start, part.tokens.stop)
        tokens = list(span) if index is None else index.tolist()
        each = [which] * len(tokens) if isinstance(which, int) else which.tolist()
        pages |= dict(zip(tokens, each, strict=True))
    assert pages.keys().isdisjoint(LEFT_ALONE)
    return pages


def check(y: Tensor, before: Tensor, exact: dict[int, Tensor], dtype: torch.dtype) -> None:
    """Routed rows as they should be, all others as they were, to the bit."""
    y = y.cpu()
    tolerance = TOLERANCE[dtype]
    for token, row in exact.items():
        torch.testing.assert_close(y[token].double(), row, rtol=tolerance, atol=tolerance)
    others = [token for token in range(NUM_TOKENS) if token not in exact]
    integers = {4: torch.int32, 2: torch.int16}[y.element_size()]
    assert torch.equal(y[others].view(integers), before[others].view(integers))
    assert y[LEFT_ALONE].isnan().any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [64, 100, 2048])
@pytest.mark.parametrize("name", ROUTINGS)
def test_scaled_rows(name: str, width: int, dtype: torch.dtype, device: torch.device) -> None:
    scales, shifts = vectors(width, 1, device), vectors(width, 2, device)
    before = randn(NUM_TOKENS, width, dtype=dtype)
    before[LEFT_ALONE, 5] = torch.nan
    y, routed = before.to(device, copy=True), routing(name, device)
    ops.scale_rows(y, scales, shifts, routed)
    wide = before.double()
    exact = {
        token: wide[token] * scales[page].cpu().double() + shifts[page].cpu().double()
        for token, page in pages_of(routed).items()
    }
    check(y, before, exact, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(64,), (2048,), (3, 100)])
@pytest.mark.parametrize("name", ROUTINGS)
def test_normed_rows(
    name: str, shape: tuple[int, ...], offset: float, dtype: torch.dtype, device: torch.device
) -> None:
    """``x`` is a view of a wider tensor; heads have gaps behind them."""
    weights = vectors(shape[-1], 1, device)
    wider = randn(NUM_TOKENS, *shape[:-1], shape[-1] + 4, dtype=dtype)
    x, before = wider[..., : shape[-1]], randn(NUM_TOKENS, *shape, dtype=dtype, seed=1)
    before[LEFT_ALONE] = torch.nan
    y, routed = before.to(device, copy=True), routing(name, device)
    ops.norm_rows(y, wider.to(device)[..., : shape[-1]], weights, 1e-6, offset, routed)
    wide = x.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = {
        token: normed[token] * (weights[page].cpu().double() + offset)
        for token, page in pages_of(routed).items()
    }
    check(y, before, exact, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(2048,), (3, 64)])
def test_the_bases_own_weights_change_nothing(
    shape: tuple[int, ...], offset: float, dtype: torch.dtype, device: torch.device
) -> None:
    """A row that shares a step with another's norms is normed again, to the same bits."""
    x = randn(7, *shape, dtype=dtype).to(device)
    weight = randn(shape[-1], dtype=dtype, seed=1).to(device)
    y = ops.rms_norm(x, weight, 1e-6, offset)
    again = torch.full_like(y, torch.nan)
    routed = (VectorRows(Selection(0, 7), 0),)
    ops.norm_rows(again, x, weight.float()[None], 1e-6, offset, routed)
    assert torch.equal(again, y)
    if len(shape) == 1:
        ones, zeros = torch.ones(1, 2048, device=device), torch.zeros(1, 2048, device=device)
        ops.scale_rows(again, ones, zeros, routed)
        assert torch.equal(again, y)


def test_many_runs_are_one_launch(device: torch.device) -> None:
    """However long: a kernel finds each token's page by itself."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "num_kv_heads": 1}
    shapes = ModuleShapes.for_decoder(num_layers=1, head_dim=4, **sizes)
    pool = DensePool(100_000, shapes, torch.float32, device, num_slots=4)
    generator = torch.Generator().manual_seed(0)
    for slot in range(3):
        pool.reserve(slot, random_vectors(shapes, generator, ["down"]))
    step = build_step_dense([0, None, 1, 2, 0], [20, 3, 1, 40, 2], [True] * 5, pool)
    assert step is not None
    (part,) = step.vectors
    held = [pool.held(slot) for slot in (0, 1, 2, 0)]
    pages = [dense.page for dense in held if dense is not None]
    assert isinstance(part.pages, Tensor)
    assert part.pages.tolist() == [
        page for page, length in zip(pages, (20, 1, 40, 2), strict=True) for _ in range(length)
    ]
    assert part.tokens.of(torch.arange(66, device=device)).tolist() == [*range(20), *range(23, 66)]
    alone = build_step_dense([None, 2], [3, 4], [True] * 2, pool)
    assert alone is not None
    assert alone.vectors == (VectorRows(Selection(3, 7), pages[2]),)
