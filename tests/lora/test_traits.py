"""Traits: what an adapter costs is what the bank spends on it."""

from __future__ import annotations

import pytest
import torch

from branchline.lora.bank import AdapterBank
from branchline.lora.shapes import ModuleShapes
from branchline.lora.traits import AdapterTraits
from branchline.lora.weights import pages_of_rank
from branchline.tests.support.lora_reference import random_weights

SHAPES = {
    fused: ModuleShapes.for_decoder(
        num_layers=3,
        hidden_size=40,
        intermediate_size=56,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        fused=fused,
    )
    for fused in (False, True)
}


@pytest.mark.parametrize(
    ("ranks", "rank"),
    [
        ({"qkv": 1, "o": 1, "gate_up": 1, "down": 1}, 16),
        ({"qkv": 16}, 16),
        ({"o": 17, "down": 4}, 32),
        ({"qkv": 8, "gate_up": 64}, 64),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_costs_are_those_of_the_pages(
    ranks: dict[str, int], rank: int, fused: bool, dtype: torch.dtype
) -> None:
    num_pages = {name: pages_of_rank(r) for name, r in ranks.items()}
    weights = random_weights(SHAPES[fused], ranks, torch.Generator()).as_dtype(dtype)
    traits = AdapterTraits.from_pages(
        weights.num_pages, weights.num_bytes, invocation_tokens=(1, 2)
    )
    bank = AdapterBank(SHAPES[fused], 3, num_pages, dtype, "cpu")
    held = sum(pool.a.nbytes + pool.b.nbytes for pool in bank.pools.values())
    assert traits == AdapterTraits(rank, held, (1, 2))
