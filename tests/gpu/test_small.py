"""The small kernels against float64, and against their twins where bits must agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchline.kernels import ops

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""The interpreter cuts bfloat16 off where a GPU rounds."""

POISON = 1e30


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(actual: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.cpu().double(), exact, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a launcher allocates is full of NaN, so that an element left out shows."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poisoned(*args: object, make=make, **kwargs: object) -> Tensor:  # type: ignore[no-untyped-def]
            return make(*args, **kwargs).fill_(torch.nan)

        monkeypatch.setattr(torch, name, poisoned)


def exact_norm(x: Tensor, weight: Tensor, offset: float) -> Tensor:
    wide = x.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normed * (weight.double() + offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 64), (7, 100), (33, 2048), (7, 3, 64), (33, 5, 24)])
def test_rms_norm(shape, dtype, offset, device) -> None:
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], seed=1, dtype=dtype)
    actual = ops.rms_norm(x.to(device), weight.to(device), 1e-5, offset)
    assert_near(actual, exact_norm(x, weight, offset), dtype)


def test_heads_are_normed_within_a_projection(device) -> None:
    """Queries and keys are views: neither what lies between two tokens' heads is read nor moved."""
    qkv, weight = randn(7, 6 * 24).to(device), randn(24, seed=1).to(device)
    qkv.view(7, 6, 24)[:, 5] = torch.nan
    before = qkv.clone()
    for heads in (slice(0, 3), slice(3, 5)):
        view = qkv.view(7, 6, 24)[:, heads]
        actual = ops.rms_norm(view, weight, 1e-5)
        assert_near(actual, exact_norm(view.cpu(), weight.cpu(), 0.0), torch.float32)
    assert torch.equal(qkv.nan_to_num(POISON), before.nan_to_num(POISON))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 2048), (7, 64), (33, 100)])
def test_fused_add_rms_norm(shape, dtype, offset, device) -> None:
    x, residual = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    weight = randn(shape[-1], seed=2, dtype=dtype)
    given = x.to(device), residual.to(device)
    kept = [part.clone() for part in given]
    normed, total = ops.fused_add_rms_norm(*given, weight.to(device), 1e-5, offset)
    assert_near(total, x.double() + residual.double(), dtype)
    assert_near(normed, exact_norm(x + residual, weight, offset), dtype)
    assert all(torch.equal(*pair) for pair in zip(given, kept, strict=True))


def test_a_row_of_nan_is_its_own(device) -> None:
    x = randn(7, 100)
    x[3] = torch.nan
    actual = ops.rms_norm(x.to(device), torch.ones(100, device=device), 1e-5)
    assert actual[3].isnan().all()
    assert actual.isnan().sum() == 100


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 2048), (7, 100), (33, 64)])
def test_gated_activation(shape, dtype, activation, device) -> None:
    num_tokens, size = shape
    gate_up = (3 * randn(num_tokens, 2 * size)).to(dtype)
    gate_up[0, :4] = torch.tensor([-60.0, 60.0, -20.0, 0.0])
    gate, up = gate_up.double().chunk(2, -1)
    exact = torch.nn.functional.silu(gate) * up
    if activation == "gelu_tanh":
        exact = torch.nn.functional.gelu(gate, approximate="tanh") * up
    assert_near(ops.gated_activation(gate_up.to(device), activation), exact, dtype)
