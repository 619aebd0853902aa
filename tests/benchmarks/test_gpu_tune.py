"""The tuner's rival of the LoRA kernels computes what they do."""

from __future__ import annotations

import pytest
import torch

from branchline.benchmarks.gpu.harness import fill_bank, random_pages
from branchline.benchmarks.gpu.tune import Traffic, _dense_step
from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.mapping import build_mapping
from branchline.lora.shapes import GroupShape, ModuleShapes

ROWS = 8


@pytest.mark.parametrize("num_adapters", [1, 4])
def test_one_dense_product_over_all_slots(num_adapters: int) -> None:
    shapes = ModuleShapes(1, {"group": GroupShape(32, (("q", 24), ("k", 8), ("v", 8)))})
    bank = AdapterBank(shapes, 1, num_adapters, torch.float32, "cpu", num_adapters)
    for slot in range(num_adapters):
        bank.reserve(slot, random_pages(shapes, 16))
    fill_bank(bank)
    pool, x = bank.pools["group"], torch.randn(ROWS, 32)
    actual, expected = torch.zeros(ROWS, 40), torch.zeros(ROWS, 40)
    _dense_step(x, actual, pool, Traffic("decode", ROWS, num_adapters))()
    each = ROWS // num_adapters
    mapping = build_mapping(range(num_adapters), [each] * num_adapters, bank)
    assert mapping is not None
    routing = mapping.groups["group"]
    hidden = ops.shrink(x, pool.a_layers[0], routing)
    ops.expand(hidden, pool.b_layers[0], pool.slice_sizes, routing, expected)
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
