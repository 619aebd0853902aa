"""Zeroed pools that cost what is used of them."""

from __future__ import annotations

import psutil
import pytest
import torch

from branchline.lora.clear_memory import clear_tensor

MIB = 1 << 20


def test_a_pool_takes_memory_as_it_is_written() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    pool = clear_tensor((4, 64 * MIB), torch.uint8, "cpu")
    assert process.memory_info().rss - before < 64 * MIB
    pool[1] = 1
    assert process.memory_info().rss - before > 60 * MIB
    assert not pool[2, :MIB].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(3, 5, 2), (0, 4), (7,)])
def test_it_is_a_tensor_like_any_other(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    pool = clear_tensor(shape, dtype, "cpu")
    assert torch.equal(pool.float(), torch.zeros(shape))
    assert (pool.dtype, pool.shape, pool.is_contiguous()) == (dtype, shape, True)
    pool.view(torch.uint8).fill_(1)
    assert clear_tensor((2,), dtype, torch.device("cpu")).float().sum() == 0
