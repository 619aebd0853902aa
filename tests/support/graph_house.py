"""Engines whose decode steps are captured on the CPU, and steps to run there."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adapter_kinds import KINDS
from rerun_recorder import RerunRecorder
from tiny_adapters import ATTENTION, make_adapter
from tiny_models import make_tiny_model

from branchline.engine.batch import send_batch
from branchline.engine.blocks import NUM_RESERVED_BLOCKS
from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.graph_setup import open_graphs
from branchline.engine.loop import EngineLoop
from branchline.engine.step_graphs import StepGraphs
from branchline.engine.step_layout import StepLayout, decode_layout

MAX_SEQS = 6
BLOCK_SIZE = 4
NUM_BLOCKS = 40
MAX_LEN = 32
RANKS = {"r8": 8, "r24": 24, "r72": 72}
DENSE = "dora"


@dataclass(frozen=True)
class Served:
    """A model and its adapters by name."""

    model: Path
    adapters: dict[str, Path]


def make_served(directory: Path) -> Served:
    """A tiny Llama with adapters of one page, of two on attention, of five, and a dense one."""
    model = make_tiny_model(directory / "model", "llama")
    adapters = {
        name: make_adapter(
            model,
            directory / name,
            rank,
            seed=rank,
            **({"target_modules": ATTENTION} if name == "r24" else {}),
        )
        for name, rank in RANKS.items()
    }
    adapters[DENSE] = KINDS[DENSE].make(model, directory / DENSE, 1)
    return Served(model, adapters)


def start(served: Served, **options: Any) -> EngineLoop:
    """An engine without graphs, of few blocks."""
    options = {
        "max_num_seqs": MAX_SEQS,
        "max_model_len": MAX_LEN,
        "block_size": BLOCK_SIZE,
        "kv_cache_gb": NUM_BLOCKS * BLOCK_SIZE * 2 * 4 * 4 * 16 * 4 / 2**30,
        "adapter_memory_gb": 0.05,
        "dtype": "float32",
        "device": "cpu",
        **options,
    }
    sources = tuple(AdapterSource(digest=n, path=str(p)) for n, p in served.adapters.items())
    return build_engine(
        EngineConfig(model=str(served.model), adapters=sources, num_threads=1, **options)
    )


@dataclass(frozen=True)
class House:
    """An engine whose graphs are captured on the CPU."""

    loop: EngineLoop
    graphs: StepGraphs
    recorder: RerunRecorder

    @property
    def pool(self) -> torch.Tensor:
        return self.loop._runner.kv_pool

    def slot(self, name: str | None) -> int | None:
        return None if name is None else self.loop.adapters.slots.slot(name)

    @torch.inference_mode()
    def eager(self, layout: StepLayout, previous: torch.Tensor | None = None) -> torch.Tensor:
        loop = self.loop
        batch = send_batch(layout, loop.adapters.bank, torch.device("cpu"))
        return loop._runner.execute(batch, previous)

    @torch.inference_mode()
    def replayed(
        self, layout: StepLayout, previous: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        self.graphs.logits.fill_(torch.nan)
        return self.graphs.execute(layout, previous)


def open_house(served: Served, **options: Any) -> House:
    """An engine with graphs."""
    loop = start(served, **options)
    recorder = RerunRecorder()
    graphs = open_graphs(
        EngineConfig(model="model"), loop._runner, loop.adapters.bank, MAX_SEQS, recorder=recorder
    )
    assert graphs is not None
    loop._graphs = graphs
    return House(loop, graphs, recorder)


def decodes(house: House, names: list[str | None], seed: int) -> StepLayout:
    """A step of decodes at any positions, whose requests' blocks are all over the pool."""
    numbers = random.Random(seed)
    blocks = list(range(NUM_RESERVED_BLOCKS, house.pool.shape[2]))
    numbers.shuffle(blocks)
    positions = [numbers.randrange(5 * BLOCK_SIZE) for _ in names]
    tables = [[blocks.pop() for _ in range(p // BLOCK_SIZE + 1)] for p in positions]
    tokens = [numbers.randrange(250) for _ in names]
    return decode_layout(tokens, positions, tables, [house.slot(n) for n in names], BLOCK_SIZE)


def fill_pool(house: House, seed: int = 0) -> None:
    """Random keys and values everywhere."""
    house.pool.copy_(torch.randn(house.pool.shape, generator=torch.Generator().manual_seed(seed)))
