"""Packed weights multiply as plain ones do."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels import ops


@pytest.mark.parametrize("rows", [1, 3, 32, 257])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-2)],
)
def test_equals_float64(rows, bias, dtype, tolerance):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 37, generator=generator).to(dtype)
    weight = torch.randn(53, 37, generator=generator).to(dtype)
    added = torch.randn(53, generator=generator).to(dtype) if bias else None
    expected = x.double() @ weight.double().T + (0 if added is None else added.double())
    for form in (weight, ops.pack_linear(weight)):
        y = ops.linear(x, form, added)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * 6)


def test_packing_can_be_undone():
    weight = torch.randn(53, 37, generator=torch.Generator().manual_seed(0))
    packed = ops.pack_linear(weight)
    assert torch.equal(packed.to_dense() if packed.is_mkldnn else packed, weight)


def test_half_precision_without_cpu_kernels_is_left_alone():
    weight = torch.zeros(4, 4, dtype=torch.float16)
    assert ops.pack_linear(weight) is weight
