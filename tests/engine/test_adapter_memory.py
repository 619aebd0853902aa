"""Room for adapters on a GPU that is played by a number."""

from __future__ import annotations

import pytest
import torch

from branchline.engine.adapter_memory import GPU_DENSE, GPU_PAGES, MAX_PAGES, adapter_budget
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineStartError
from branchline.engine.memory import GIB
from branchline.lora.shapes import ModuleShapes

GPU = torch.device("cuda", 0)
TOTAL = 80 * GIB
LLAMA = ModuleShapes.for_decoder(
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
PAGE_BYTES = 16 * 5_242_880
"""Of 16 ranks of Llama-3.1-8B: 2 bytes for each input and output of seven modules, 32 times."""


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (TOTAL // 2, TOTAL))


@pytest.mark.parametrize("share", [0.9, 0.25])
def test_adapters_get_their_part_of_our_share(share: float) -> None:
    config = EngineConfig(model="m", gpu_memory_utilization=share)
    budget = adapter_budget(config, LLAMA, torch.bfloat16, GPU)
    assert budget.num_pages == int(TOTAL * share * GPU_PAGES) // PAGE_BYTES
    assert budget.dense_bytes == int(TOTAL * share * GPU_DENSE)
    assert budget.num_slots == 256


def test_what_is_stated_is_taken_as_it_is() -> None:
    config = EngineConfig(
        model="m", adapter_memory_gb=20, adapter_dense_gb=0, gpu_memory_utilization=0.1
    )
    budget = adapter_budget(config, LLAMA, torch.bfloat16, GPU)
    assert (budget.num_pages, budget.dense_bytes) == (20 * GIB // PAGE_BYTES, 0)
    with pytest.raises(EngineStartError, match="adapter_memory_gb: 81 is more than the 80 GiB"):
        adapter_budget(EngineConfig(model="m", adapter_memory_gb=81), LLAMA, torch.bfloat16, GPU)


def test_pages_in_8_bits_are_nearly_twice_as_many() -> None:
    config = EngineConfig(model="m", adapter_memory_gb=20, adapter_dtype="fp8")
    budget = adapter_budget(config, LLAMA, torch.bfloat16, GPU)
    assert budget.page_dtype == torch.float8_e4m3fn
    scales = 32 * 16 * 4 * (3 + 1 + 2 + 1)
    assert budget.num_pages == 20 * GIB // (PAGE_BYTES // 2 + scales)
    plain = adapter_budget(
        EngineConfig(model="m", adapter_memory_gb=20), LLAMA, torch.bfloat16, GPU
    )
    assert plain.page_dtype == torch.bfloat16
    assert 1.9 < budget.num_pages / plain.num_pages < 2


def test_pages_have_an_end_however_small_the_model() -> None:
    shapes = ModuleShapes.for_decoder(
        num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, num_kv_heads=1, head_dim=4
    )
    budget = adapter_budget(EngineConfig(model="m"), shapes, torch.bfloat16, GPU)
    assert budget.num_pages == MAX_PAGES
