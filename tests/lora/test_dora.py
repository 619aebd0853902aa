"""DoRA's norms, taken in parts."""

from __future__ import annotations

import pytest
import torch

from branchline.lora import dora


@pytest.mark.parametrize("at_once", [1, 100, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_of_the_sum(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dora, "_NUMBERS_AT_ONCE", at_once)
    torch.manual_seed(0)
    weight, left, right = torch.randn(37, 19).to(dtype), torch.randn(37, 5), torch.randn(5, 19)
    total = weight.double() + left.double() @ right.double()
    rows = dora.row_norms(weight, left, right)
    columns = dora.column_norms(weight, left, right)
    torch.testing.assert_close(rows.double(), total.norm(dim=1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(columns.double(), total.norm(dim=0), rtol=1e-6, atol=1e-6)
