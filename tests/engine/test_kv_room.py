"""Sizes of the KV pool: on a CPU, and on a GPU that is played by numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from engine_run import check_generations, generate_all
from oracle import Reference
from paged_run import random_prompts
from tiny_models import make_tiny_model

from branchline.engine import kv_room
from branchline.engine.blocks import NUM_RESERVED_BLOCKS
from branchline.engine.build import build_engine
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineStartError
from branchline.engine.kv_room import kv_layout, num_kv_blocks, run_largest_step
from branchline.engine.memory import GIB, GRAPH_BYTES, SPARE_BYTES, gpu_room, kv_budget
from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.engine.weights import load_decoder

GPU = torch.device("cuda", 0)
TRAINED = Path(__file__).parents[2] / "examples" / "skill" / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama31", tokenizer=False)


def decoder_of(model: Path, max_model_len: int = 64) -> Decoder:
    facts = ModelConfig.from_directory(model)
    return load_decoder(model, facts, torch.float32, "cpu", max_model_len)


@dataclass
class Card:
    """80 GiB: 2 are others', ``allocated`` are tensors and ``cached`` what the allocator keeps."""

    allocated: int = 16 * GIB
    cached: int = GIB
    others: int = 2 * GIB
    total: int = 80 * GIB
    calls: list[str] = field(default_factory=list)
    peak: int = 0

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.total - self.others - self.allocated - self.cached, self.total

    def memory_reserved(self, device: torch.device) -> int:
        return self.allocated + self.cached

    def memory_allocated(self, device: torch.device) -> int:
        return self.allocated

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = self.allocated
        self.calls.append("reset")

    def synchronize(self, device: torch.device) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.cached = 0
        self.calls.append("empty")

    def step(self, num_bytes: int) -> Callable[..., None]:
        """In place of the largest step."""

        def run(*arguments: object) -> None:
            self.peak = max(self.peak, self.allocated + num_bytes)
            self.cached += num_bytes
            self.calls.append("step")

        return run


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    for name in (
        *("mem_get_info", "memory_reserved", "memory_allocated", "max_memory_allocated"),
        *("reset_peak_memory_stats", "synchronize", "empty_cache"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    return card


def test_a_gpu_gives_its_share_less_all_that_is_there(card: Card) -> None:
    left = 72 * GIB - 2 * GIB - 16 * GIB - 3 * GIB - SPARE_BYTES
    assert gpu_room(GPU, 0.9, 3 * GIB, captures=False) == left
    assert gpu_room(GPU, 0.9, 3 * GIB, captures=True) == left - 3 * GIB - GRAPH_BYTES


def test_what_the_allocator_keeps_is_not_lost(card: Card) -> None:
    before = gpu_room(GPU, 0.9, GIB, captures=False)
    card.cached = 20 * GIB
    assert gpu_room(GPU, 0.9, GIB, captures=False) == before


def test_other_processes_are_left_theirs(card: Card) -> None:
    before = gpu_room(GPU, 0.9, GIB, captures=False)
    card.others += 5 * GIB
    assert gpu_room(GPU, 0.9, GIB, captures=False) == before - 5 * GIB
    card.others = 60 * GIB
    assert gpu_room(GPU, 0.9, GIB, captures=False) == 0, "never less than nothing"


def test_a_stated_size_must_fit_beside_the_weights_and_the_steps(card: Card) -> None:
    beside = 2 * GIB + 16 * GIB + 3 * GIB + SPARE_BYTES
    most = (80 * GIB - beside) / GIB
    config = EngineConfig(model="m", kv_cache_gb=most, enforce_eager=True)
    assert kv_budget(config, GPU, wanted=1, step_bytes=3 * GIB) == int(most * GIB)
    with pytest.raises(EngineStartError, match=r"kv_cache_gb: .* is more than the 58.5 GiB there"):
        kv_budget(
            EngineConfig(model="m", kv_cache_gb=most + 0.01, enforce_eager=True),
            *(GPU, 1, 3 * GIB),
        )


def test_a_gpus_step_is_measured_from_what_lies_there(
    card: Card, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Not from the peak of loading, and what it leaves is given back before the pool comes."""
    card.peak = 30 * GIB
    decoder = decoder_of(model)
    monkeypatch.setattr(decoder, "device", GPU)
    monkeypatch.setattr(kv_room, "run_largest_step", card.step(GIB))
    assert kv_room.measure_step(EngineConfig(model="m"), decoder, torch.float32) == GIB
    assert card.calls == ["synchronize", "reset", "step", "synchronize", "empty"]
    assert card.cached == 0


def test_a_gpus_pool_has_what_is_left(
    card: Card, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    decoder = decoder_of(model)
    monkeypatch.setattr(decoder, "device", GPU)
    monkeypatch.setattr(kv_room, "run_largest_step", card.step(GIB))
    config = EngineConfig(model="m", max_num_seqs=10**9, gpu_memory_utilization=0.5)
    layout = kv_layout(config, decoder)
    left = 40 * GIB - 2 * GIB - 16 * GIB - 2 * GIB - GRAPH_BYTES - SPARE_BYTES
    assert num_kv_blocks(config, decoder, layout) == left // layout.block_bytes


def test_a_cpus_pool_has_what_all_sequences_need(model: Path) -> None:
    config = EngineConfig(model="m", max_num_seqs=3, block_size=16)
    decoder = decoder_of(model, max_model_len=65)
    blocks = num_kv_blocks(config, decoder, kv_layout(config, decoder))
    assert blocks == 3 * 5 + NUM_RESERVED_BLOCKS


def test_blocks_of_8_bits_are_smaller(model: Path) -> None:
    """4 layers, 2 heads of 16: a byte each and a scale of 4 bytes a head, or 4 bytes each."""
    decoder = decoder_of(model)
    sizes = [
        kv_layout(EngineConfig(model="m", kv_cache_dtype=dtype), decoder).block_bytes
        for dtype in ("fp8", "auto")
    ]
    assert sizes == [2 * 4 * 16 * 2 * (16 + 4), 2 * 4 * 16 * 2 * 16 * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_the_largest_step_can_run_before_there_is_a_pool(model: Path, dtype: torch.dtype) -> None:
    config = EngineConfig(model="m", max_num_batched_tokens=100, max_num_seqs=7)
    run_largest_step(config, decoder_of(model), dtype)


def test_an_engine_generates_from_8_bits() -> None:
    """In blocks of 4, so that requests cross them; what it says is what the reference would."""
    config = EngineConfig(
        model=str(TRAINED),
        dtype="float32",
        device="cpu",
        kv_cache_dtype="fp8",
        kv_cache_gb=0.001,
        block_size=4,
        max_model_len=64,
        num_threads=1,
    )
    loop = build_engine(config)
    block_bytes = 2 * 4 * 4 * 2 * (32 + 4)
    assert loop.info.num_blocks == GIB // 1000 // block_bytes - NUM_RESERVED_BLOCKS
    params = SamplingParams(temperature=0, seed=0, max_tokens=12, ignore_eos=True)
    generations = [
        GenerationRequest(request_id=f"r{i}", prompt_token_ids=prompt, params=params)
        for i, prompt in enumerate(random_prompts([17, 20, 23, 26]))
    ]
    tokens = generate_all(loop, generations)
    reference = Reference(TRAINED)
    check_generations(reference, generations, tokens, margin=0.5, max_near_tie_share=0.5)
