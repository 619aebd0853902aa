"""Graphs at the start of an engine: which there are, and that none goes on that computes wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graph_house import BLOCK_SIZE, MAX_LEN, MAX_SEQS, Served, make_served, start
from rerun_recorder import RerunRecorder

from branchline.engine import step_graphs
from branchline.engine.blocks import NUM_RESERVED_BLOCKS
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineStartError
from branchline.engine.graph_check import check_graphs
from branchline.engine.graph_inputs import graph_kinds, graph_sizes
from branchline.engine.graph_setup import open_graphs
from branchline.engine.step_graphs import StepGraphs
from branchline.engine.step_warm_up import TRIALS, warm_up_adapters, warm_up_decodes
from branchline.lora.work import choose_tiling


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    return make_served(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (40, [1, 2, 4, 8, 16, 24, 32, 40]),
    ],
)
def test_sizes_go_up_to_the_most_requests(max_num_seqs, sizes):
    assert graph_sizes(max_num_seqs) == sizes


def test_kinds_have_room_for_few_pages_and_for_many(served):
    bank = start(served).adapters.bank
    kinds = [(kind.size, kind.work and kind.work.max_items) for kind in graph_kinds(MAX_SEQS, bank)]
    assert kinds == [
        *((1, None), (1, 1), (1, 4)),
        *((2, None), (2, 2), (2, 8)),
        *((4, None), (4, 4), (4, 16)),
        *((6, None), (6, 6), (6, 24)),
    ]
    assert [kind.work for kind in graph_kinds(2, None)] == [None, None]


def test_capturing_tells_how_far_it_is_every_so_often(served, monkeypatch):
    monkeypatch.setattr(step_graphs, "PROGRESS_STEP", 4)
    loop = start(served)
    told: list[str] = []
    open_graphs(
        EngineConfig(model="model"),
        loop._runner,
        loop.adapters.bank,
        2,
        lambda progress: told.append(progress.text),
        RerunRecorder(),
    )
    numbers = [1, 5, 6]
    assert told == [*(f"capturing graphs {number}/6" for number in numbers), "checking graphs"]


@pytest.mark.parametrize(("kv_cache_dtype", "adapter_dtype"), [("auto", "auto"), ("fp8", "fp8")])
def test_the_check_leaves_no_trace(served, kv_cache_dtype, adapter_dtype):
    """The trial adapter is kept as all are."""
    loop = start(served, kv_cache_dtype=kv_cache_dtype, adapter_dtype=adapter_dtype)
    bank, pool = loop.adapters.bank, loop._runner.kv_pool
    loaded = bank.loaded_slots
    open_graphs(EngineConfig(model="m"), loop._runner, bank, 3, recorder=RerunRecorder())
    assert bank.loaded_slots == loaded
    bank.check()
    assert not pool[:, :, NUM_RESERVED_BLOCKS:].any()


class Forgetful(RerunRecorder):
    """Replays nothing of the calls that ``forgets`` picks by their number."""

    def __init__(self, forgotten: set[int]) -> None:
        super().__init__()
        self._forgotten = forgotten

    def record(self, run):
        replay = super().record(run)
        return (lambda: None) if self.num_recorded - 1 in self._forgotten else replay


@pytest.mark.parametrize("forgotten", range(6))
def test_a_graph_that_does_nothing_stops_the_start(served, forgotten):
    loop = start(served)
    with pytest.raises(EngineStartError, match="off from the eager one"):
        open_graphs(
            EngineConfig(model="m"),
            loop._runner,
            loop.adapters.bank,
            2,
            recorder=Forgetful({forgotten}),
        )


def test_a_graph_without_its_adapters_stops_the_start(served, monkeypatch):
    """As if it had been captured when there were none: it gives the base model's answer."""
    loop = start(served)
    graphs = StepGraphs(loop._runner, loop.adapters.bank, 2)
    batch = graphs._inputs.batch
    last = graphs.kinds[-1]
    monkeypatch.setattr(
        type(graphs._inputs),
        "batch",
        lambda self, kind: replace(batch(kind), lora=None) if kind == last else batch(kind),
    )
    graphs.capture(RerunRecorder())
    with pytest.raises(EngineStartError, match=r"2 requests, 8 adapter pages.*--enforce-eager"):
        check_graphs(graphs, loop._runner, loop.adapters.bank)


def test_where_no_slot_is_free_the_check_takes_the_smallest_adapter_it_can(served, monkeypatch):
    loop = start(served)
    bank = loop.adapters.bank
    pages = {slot: sum(len(p.pages(slot)) for p in bank.pools.values()) for slot in range(99)}
    checked: list[int] = []
    replay = StepGraphs.replay

    def note(self, kind, layout, previous_token_ids=None):
        checked.extend(slot for slot in layout.adapters.segment_slots if slot is not None)
        return replay(self, kind, layout, previous_token_ids)

    monkeypatch.setattr(StepGraphs, "replay", note)
    monkeypatch.setattr(bank, "num_slots", len(bank.loaded_slots))
    assert bank.loaded_slots == set(range(bank.num_slots)), "none of them is free"
    open_graphs(EngineConfig(model="m"), loop._runner, bank, 3, recorder=RerunRecorder())
    dense = {slot for slot in bank.loaded_slots if bank.dense and bank.dense.held(slot)}
    plain = bank.loaded_slots - dense
    assert set(checked) == {min(plain, key=lambda slot: (pages[slot], slot))}
    assert max(pages[slot] for slot in plain) > min(pages[slot] for slot in plain)


def test_what_can_not_be_captured_stops_the_start(served):
    class Failing(RerunRecorder):
        def record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    loop = start(served)
    with pytest.raises(EngineStartError, match=r"not permitted when stream is capturing; --enf"):
        open_graphs(
            EngineConfig(model="m"), loop._runner, loop.adapters.bank, 2, recorder=Failing()
        )


def test_a_cpu_has_no_graphs_and_enforce_eager_neither(served):
    loop = start(served)
    parts = loop._runner, loop.adapters.bank, 2
    assert loop._graphs is None
    assert open_graphs(EngineConfig(model="m"), *parts) is None
    eager = EngineConfig(model="m", enforce_eager=True)
    assert open_graphs(eager, *parts, recorder=RerunRecorder()) is None


def test_warming_up_runs_each_way_of_tiling_and_leaves_no_adapter(served, monkeypatch):
    loop = start(served)
    bank = loop.adapters.bank
    loaded, shapes = bank.loaded_slots, []
    compute = loop._runner.compute

    def note(batch):
        logits = compute(batch)
        assert batch.lora is not None
        shapes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(loop._runner, "compute", note)
    warm_up_adapters(loop._runner, bank, 600)
    assert len(shapes) == len(TRIALS)
    assert bank.loaded_slots == loaded
    bank.check()
    assert not loop._runner.kv_pool[:, :, NUM_RESERVED_BLOCKS:].any()
    tilings = {choose_tiling([0, None], trial) for trial in TRIALS}
    assert len(tilings) == 4


def test_warming_up_decodes_covers_few_and_many_and_leaves_no_trace(served, monkeypatch):
    loop = start(served)
    compute, sizes = loop._runner.compute, []

    def note(batch):
        sizes.append(tuple(batch.attention.block_tables.shape))
        return compute(batch)

    monkeypatch.setattr(loop._runner, "compute", note)
    warm_up_decodes(loop._runner, MAX_SEQS)
    assert [rows for rows, _ in sizes] == [1, 2, 4, 6, 6, 6, 6]
    assert {width for _, width in sizes} == {MAX_LEN // BLOCK_SIZE}
    assert not loop._runner.kv_pool[:, :, NUM_RESERVED_BLOCKS:].any()


def test_a_kernel_that_does_not_compile_stops_the_start_by_name(served):
    class Failing(RerunRecorder):
        def record(self, run):
            raise ValueError("out of resource: shared memory")

    loop = start(served)
    parts = loop._runner, loop.adapters.bank, 2
    with pytest.raises(EngineStartError, match=r"out of resource: shared memory; --enforce-eager"):
        open_graphs(EngineConfig(model="m"), *parts, recorder=Failing())
