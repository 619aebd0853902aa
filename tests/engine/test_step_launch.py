"""Steps are launched and not waited for; the largest one runs without a pool."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_tiny_model

from branchline.engine import pipeline
from branchline.engine.batch import pad_tables
from branchline.engine.build import build_engine
from branchline.engine.config import EngineConfig
from branchline.engine.models.config import ModelConfig
from branchline.engine.pipeline import StepPipeline
from branchline.engine.plan import SampledToken, StepPlan, StepResult
from branchline.engine.step_launch import LaunchedStep
from branchline.engine.step_profile import largest_step, profile_run
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.engine.weights import load_decoder
from branchline.kernels import ops


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


class Recording:
    """A sampler that notes when its tokens are chosen and when they are asked for."""

    def __init__(self, sampler) -> None:
        self._sampler = sampler
        self.calls: list[str] = []

    def launch(self, logits, rows, masks=None):
        self.calls.append("launch")
        pending = self._sampler.launch(logits, rows, masks)

        def result():
            self.calls.append("result")
            return pending.result()

        return SimpleNamespace(token_ids=pending.token_ids, result=result)


def run(model: Path, ahead: bool | None) -> tuple[list[str], list[int]]:
    room = {"kv_cache_gb": 0.01, "adapter_memory_gb": 0.05}
    options = {"dtype": "float32", "device": "cpu", "num_threads": 1, **room}
    loop = build_engine(EngineConfig(model=str(model), async_scheduling=ahead, **options))
    loop._sampler = recording = Recording(loop._sampler)
    params = SamplingParams(temperature=0, seed=1, max_tokens=4, ignore_eos=True)
    loop.add(GenerationRequest(request_id="r", prompt_token_ids=[5, 6, 7], params=params))
    tokens = []
    while loop.has_work:
        for output in loop.step():
            tokens += output.token_ids
    return recording.calls, tokens


def test_the_next_step_is_launched_before_the_last_ones_tokens_are_read(model):
    calls, tokens = run(model, True)
    assert calls == ["launch", *["launch", "result"] * 3, "result"]
    by_default, expected = run(model, None)
    assert by_default == ["launch", "result"] * 4
    assert tokens == expected


def test_a_result_has_tokens_logprobs_and_errors_row_by_row():
    sampled = SimpleNamespace(token_ids=[4, -1], logprobs=["some", None], errors={1: "why"})
    step = LaunchedStep.of(SimpleNamespace(result=lambda: sampled))
    assert step.result().sampled == [SampledToken(4, "some"), SampledToken(-1, None, "why")]


def test_a_step_without_samples_has_none_and_waits_for_its_end():
    assert LaunchedStep.without_samples(torch.device("cpu")).result() == StepResult([])
    waited = []
    end = SimpleNamespace(synchronize=lambda: waited.append(True))
    assert LaunchedStep(end=end).result() == StepResult([])
    assert waited == [True]


class OnePlanAfterTheOther:
    """A scheduler that always has a plan; steps are numbered."""

    needs_drain = False
    has_requests = True

    def __init__(self) -> None:
        self.number = 0

    def schedule(self) -> StepPlan:
        self.number += 1
        return StepPlan((object(),), number=self.number)

    def apply(self, plan, sampled, prompts):
        return []

    def fail(self, plan, error):
        return []


def test_a_step_s_seconds_begin_when_the_one_before_has_ended(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now[0])

    class Step:
        def result(self):
            now[0] += 5.0
            return StepResult([])

    def launch(plan):
        now[0] += 1.0
        return Step()

    ahead = StepPipeline(OnePlanAfterTheOther(), launch, depth=1)
    finished = [step for _ in range(4) for step in ahead.advance()]
    # Launches at 100 and 101; the first ends at 107, and then each launch and end take six.
    assert [step.seconds for step in finished] == [7.0, 6.0, 6.0]


@pytest.mark.parametrize("kv_dtype", [None, ops.FP8])
def test_the_largest_step_runs_against_a_pool_of_no_blocks_but_the_reserved(model, kv_dtype):
    facts = ModelConfig.from_directory(model)
    decoder = load_decoder(model, facts, torch.float32, torch.device("cpu"), 64)
    with torch.inference_mode():
        logits = profile_run(decoder, 16, 150, 7, kv_dtype)
    assert logits.shape == (7, facts.vocab_size)
    assert logits.isfinite().all()


def test_the_largest_step_is_decodes_and_prompts_of_the_whole_budget():
    layout = largest_step(150, 7, 16, 64)
    assert layout.query_lens == [1] * 6 + [64, 64, 16]
    assert len(layout.logits_indices) == 7
    assert layout.logits_indices.tolist()[-3:] == [69, 133, 149]
    assert largest_step(3, 7, 16, 64).query_lens == [1, 1, 1]
    assert largest_step(70, 1, 16, 64).query_lens == [64, 6]


def test_tables_are_padded_to_whole_strides():
    assert pad_tables([[3, 4], [5]], 3, filler=9).tolist() == [
        [3, 4, *[9] * 14],
        [5, *[9] * 15],
        [9] * 16,
    ]
    wide = pad_tables([list(range(17)), [], [7]], 3)
    assert wide.shape == (3, 32)
    assert wide[0].tolist() == [*range(17), *[0] * 15]
    assert wide[2].tolist() == [7, *[0] * 31]
