"""Weights in 8 bits: how far they are off, and that nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchline.kernels import fp8, fp8_ops, ops
from branchline.kernels.kv_cache import FP8, FP8_MAX, quantize_rows

HALF_STEP = 1 / 16
"""Of e4m3: 3 bits behind the leading one, rounded to the nearest."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(weight: ops.Fp8Weight) -> Tensor:
    return weight.values.double() * weight.scales.double().unsqueeze(1)


def test_each_output_channel_has_its_own_scale() -> None:
    plain = random(48, 64) * torch.logspace(-3, 3, 48).unsqueeze(1)
    weight = ops.quantize_weight(plain)
    assert weight.values.dtype == FP8
    torch.testing.assert_close(weight.scales, plain.abs().amax(1) / FP8_MAX)
    smallest = weight.scales.double().unsqueeze(1) * 2**-10
    off = (dense(weight) - plain.double()).abs()
    assert (off <= plain.double().abs() * HALF_STEP + smallest).all()
    assert (off > 0).any()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random(37, 16).to(torch.bfloat16)
    whole = quantize_rows(plain)
    monkeypatch.setattr(fp8, "CHUNK_ELEMENTS", 80)
    values, scales = fp8.quantize_in_chunks(plain)
    assert torch.equal(values.float(), whole[0].float())
    assert torch.equal(scales, whole[1])


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_the_product_is_that_of_the_rounded(
    rows: int, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x = random(rows, 64, seed=rows).to(dtype)
    weight = ops.quantize_weight(random(48, 64).to(dtype))
    added = random(48, seed=3).to(dtype) if bias else None
    before = x.clone()
    y = ops.linear(x, weight, added)
    assert torch.equal(x, before)
    values, scales = quantize_rows(x)
    expected = values.double() * scales.double().unsqueeze(1) @ dense(weight).t()
    expected += 0 if added is None else added.double()
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * 6)


def test_it_is_near_the_product_of_the_plain() -> None:
    """A row's error is some 4 % of its length: two roundings of 2 to 3 % each, uncorrelated."""
    x, plain = random(32, 1024, seed=1), random(256, 1024)
    exact = x.double() @ plain.double().t()
    off = ops.linear(x, ops.quantize_weight(plain)).double() - exact
    share = off.norm(dim=1) / exact.norm(dim=1)
    assert share.max() < 0.05
    assert share.min() > 0.01, "it was rounded to 8 bits at all"


def test_rows_do_not_meet() -> None:
    x, weight = random(4, 64), ops.quantize_weight(random(32, 64))
    together = ops.linear(x, weight)
    x[1:] *= 1000
    x[2, 5] = float("nan")
    assert torch.equal(ops.linear(x, weight)[0], together[0])
    assert ops.linear(x, weight)[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("rows", [1, 5])
def test_a_gpus_product_is_called_as_torch_wants_it(rows: int) -> None:
    """Without a GPU: PyTorch checks dtypes, shapes and layouts of tensors without memory too."""
    x = torch.empty(rows, 64, dtype=FP8, device="meta")
    scales = torch.empty(rows, device="meta")
    values = torch.empty(48, 64, dtype=FP8, device="meta")
    weight = ops.Fp8Weight(values, torch.empty(48, device="meta"))
    y = fp8_ops._scaled_mm(x, scales, weight)
    assert (tuple(y.shape), y.dtype) == ((rows, 48), torch.bfloat16)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        fp8_ops._scaled_mm(x[:, :40], scales, ops.Fp8Weight(values[:, :40], weight.scales))
