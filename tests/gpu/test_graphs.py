"""Steps through Triton's kernels: packed in one copy, replayed from a graph, cut by what is there.

On the CPU a replay runs the kernels again over memory that stays in its place; on a GPU it is a
CUDA graph.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
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
from branchline.engine.types import GenerationRequest, SamplingParams

BLOCK_SIZE = 16
MAX_SEQS = 3


@dataclass(frozen=True)
class House:
    loop: EngineLoop
    graphs: StepGraphs

    def slot(self, name: str | None) -> int | None:
        return None if name is None else self.loop.adapters.slots.slot(name)


@pytest.fixture(scope="module")
def house(tmp_path_factory, device) -> House:
    directory: Path = tmp_path_factory.mktemp("graphs")
    fewer = {} if device.type == "cuda" else {"num_hidden_layers": 2}
    model = make_tiny_model(directory / "model", "llama", **fewer)
    adapters = {
        "r8": make_adapter(model, directory / "r8", 8, seed=1),
        "r40": make_adapter(model, directory / "r40", 40, seed=2, target_modules=ATTENTION),
    }
    config = EngineConfig(
        model=str(model),
        adapters=tuple(AdapterSource(digest=n, path=str(p)) for n, p in adapters.items()),
        device=device.type,
        dtype="float32",
        max_model_len=48,
        max_num_seqs=MAX_SEQS,
        kv_cache_gb=0.002,
        adapter_memory_gb=0.002,
        max_loras=4,
        num_threads=1,
        enforce_eager=True,
    )
    loop = build_engine(config)
    return House(loop, capture(loop, device))


def capture(loop: EngineLoop, device: torch.device) -> StepGraphs:
    """All kinds, checked; under the interpreter only two, which take a while as it is."""
    parts = loop._runner, loop.adapters.bank, MAX_SEQS
    if device.type == "cuda":
        graphs = open_graphs(EngineConfig(model="m"), *parts)
        assert graphs is not None
        return graphs
    graphs = StepGraphs(*parts)
    del graphs.kinds[:-3], graphs.kinds[1]  # but the largest without adapters, and with
    assert [kind.work is None for kind in graphs.kinds] == [True, False]
    graphs.capture(RerunRecorder())
    return graphs


def decodes(house: House, names: list[str | None], seed: int) -> StepLayout:
    numbers = random.Random(seed)
    blocks = list(range(NUM_RESERVED_BLOCKS, NUM_RESERVED_BLOCKS + 3 * len(names)))
    numbers.shuffle(blocks)
    positions = [numbers.randrange(40) for _ in names]
    tables = [[blocks.pop() for _ in range(p // BLOCK_SIZE + 1)] for p in positions]
    tokens = [numbers.randrange(250) for _ in names]
    return decode_layout(tokens, positions, tables, [house.slot(n) for n in names], BLOCK_SIZE)


def fill_pool(house: House, layout: StepLayout) -> None:
    """Keys of the step's requests are random, whatever nobody may read is NaN."""
    pool = house.loop._runner.kv_pool
    pool.fill_(torch.nan)
    generator = torch.Generator(pool.device).manual_seed(1)
    for table, length in zip(layout.block_tables, layout.seq_lens, strict=True):
        for position in range(length - 1):
            row = pool[:, :, table[position // BLOCK_SIZE], position % BLOCK_SIZE]
            row.copy_(torch.randn(row.shape, generator=generator, device=pool.device))


BATCHES = [["r8", None, "r40"], [None], ["r40", "r40"]]


@torch.inference_mode()
def test_replays_give_what_eager_steps_do_and_read_nothing_else(house, device):
    runner = house.loop._runner
    for seed, names in enumerate(BATCHES):
        layout = decodes(house, names, seed)
        fill_pool(house, layout)
        expected = runner.execute(send_batch(layout, house.loop.adapters.bank, device)).clone()
        assert expected.isfinite().all()
        fill_pool(house, layout)
        house.graphs.logits.fill_(torch.nan)
        logits = house.graphs.execute(layout, None)
        assert logits is not None, names
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def generate(loop: EngineLoop) -> dict[str, list[int]]:
    """Base and adapters, greedy and not, with logprobs and penalties; the cache stays empty."""
    tokens: dict[str, list[int]] = {}
    for i, name in enumerate([None, "r8", "r40", "r8", None]):
        sampled = {"temperature": 0.8, "top_p": 0.9, "logprobs": 2} if i % 2 else {"temperature": 0}
        params = {"seed": i, "max_tokens": 6, "ignore_eos": True, **sampled}
        if i == 3:
            params["repetition_penalty"] = 1.2
        loop.add(
            GenerationRequest(
                request_id=f"r{i}",
                prompt_token_ids=[i + 1, 2 * i + 5, 7, *range(3 * i)],
                params=SamplingParams(**params),
                adapter=name,
            )
        )
    while loop.has_work:
        for output in loop.step():
            assert output.error is None, output.error
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    loop.reset_cache()
    return tokens


@pytest.fixture
def only_on_a_gpu(device):
    if device.type != "cuda":
        pytest.skip("takes a minute under the interpreter, or means nothing there")


@pytest.mark.usefixtures("only_on_a_gpu")
def test_requests_end_the_same_with_graphs_and_without(house, monkeypatch):
    eager = generate(house.loop)
    monkeypatch.setattr(house.loop, "_graphs", house.graphs)
    assert generate(house.loop) == eager


@pytest.mark.usefixtures("only_on_a_gpu")
@pytest.mark.parametrize("captured", [False, True])
def test_a_launch_waits_for_nothing(house, captured, monkeypatch):
    pipeline = house.loop._pipeline
    launch = pipeline._launch

    def watched(plan):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    generate(house.loop)  # kernels are compiled
    monkeypatch.setattr(pipeline, "_launch", watched)
    monkeypatch.setattr(house.loop, "_graphs", house.graphs if captured else None)
    generate(house.loop)
