"""The engine in one process: what a batch, a cut prompt or a preemption must not change."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import EngineConfig
from branchline.engine.errors import RequestError
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams

NAN_TOKEN = 77


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny Llama whose token 77 has an embedding of NaN."""
    from safetensors.torch import load_file, save_file

    directory = make_tiny_model(tmp_path_factory.mktemp("model"), "llama")
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][NAN_TOKEN] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def engine(model: Path, **options) -> EngineLoop:
    room = {"kv_cache_gb": 0.01, "adapter_memory_gb": 0.05}
    options = {"dtype": "float32", "device": "cpu", **room, **options}
    return build_engine(EngineConfig(model=str(model), num_threads=1, **options))


def request(request_id: str, prompt: list[int], **params) -> GenerationRequest:
    params = {"temperature": 0, "seed": 5, "max_tokens": 12, "ignore_eos": True, **params}
    return GenerationRequest(
        request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(**params)
    )


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    numbers = random.Random(seed)
    return [
        [numbers.choice([t for t in range(250) if t != NAN_TOKEN]) for _ in range(length)]
        for length in (numbers.randint(1, 40) for _ in range(count))
    ]


def run(loop: EngineLoop, requests: list[GenerationRequest]) -> dict[str, list[int]]:
    for generation in requests:
        loop.add(generation)
    tokens: dict[str, list[int]] = {generation.request_id: [] for generation in requests}
    while loop.has_work:
        for output in loop.step():
            tokens[output.request_id] += output.token_ids
        loop.check()
    stats = loop.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return tokens


@pytest.fixture(scope="module")
def alone(model) -> dict[str, list[int]]:
    """Each request on its own, its prompt in one piece: greedy ones and sampled ones."""
    loop = engine(model)
    answers: dict[str, list[int]] = {}
    for generation in mixed_requests():
        answers |= run(loop, [generation])
    return answers


def mixed_requests() -> list[GenerationRequest]:
    return [
        request(f"r{i}", prompt, temperature=(0, 0.9)[i % 2], seed=i)
        for i, prompt in enumerate(prompts(10))
    ]


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 64])
def test_chunks_of_any_size_give_the_same_tokens(model, alone, chunk):
    assert run(engine(model, max_num_batched_tokens=chunk), mixed_requests()) == alone


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_gives_the_same_tokens(model, alone, seed):
    shuffled = mixed_requests()
    random.Random(seed).shuffle(shuffled)
    assert run(engine(model, max_num_seqs=5), shuffled) == alone


@pytest.mark.parametrize("block_size", [1, 5, 32])
def test_blocks_of_any_size_give_the_same_tokens(model, alone, block_size):
    assert run(engine(model, block_size=block_size), mixed_requests()) == alone


def test_preempted_requests_give_the_same_tokens(model, alone):
    small = engine(model, max_model_len=64, kv_cache_gb=18 * 4 * 8192 / 2**30, block_size=4)
    assert run(small, mixed_requests()) == alone
    assert small.stats().num_preemptions > 0


def test_a_request_without_finite_logits_ends_alone_and_leaves_no_trace(model, alone):
    loop = engine(model)
    requests = mixed_requests()
    bad = request("bad", [1, NAN_TOKEN, 2, 3])
    loop.add(bad)
    for generation in requests[:5]:
        loop.add(generation)
    [failed] = [output for output in loop.step() if output.finish_reason]
    assert (failed.request_id, failed.finish_reason) == ("bad", "error")
    assert "finite" in failed.error
    for generation in requests[:5]:
        loop.abort(generation.request_id)
    assert run(loop, requests) == alone


def test_poisoned_blocks_are_clean_when_taken_again(model):
    """Of one block the second holder fills part of one; the rest must not reach its answer."""
    loop = engine(model, max_model_len=16, block_size=16, kv_cache_gb=3 * 32768 / 2**30)
    assert loop.info.num_blocks == 1
    expected = run(loop, [request("before", [5, 6], max_tokens=4)])["before"]
    run(loop, [request("bad", [NAN_TOKEN] * 12)])
    assert run(loop, [request("after", [5, 6], max_tokens=4)])["after"] == expected


def test_a_failing_step_ends_its_own_requests_and_the_next_goes_on(model, alone, monkeypatch):
    loop = engine(model, max_num_seqs=1)
    first, second = mixed_requests()[:2]
    loop.add(first)
    loop.add(second)

    def fail(*args):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(loop._runner, "execute", fail)
        [output] = loop.step()
    assert (output.request_id, output.finish_reason) == (first.request_id, "error")
    assert "no such kernel" in output.error
    assert loop.stats().num_failed_steps == 1
    answer: list[int] = []
    while loop.has_work:
        answer += [token for output in loop.step() for token in output.token_ids]
    assert answer == alone[second.request_id]


def test_two_thousand_requests_with_aborts_leave_every_block_free(model):
    loop = engine(model, max_model_len=48, max_num_seqs=64, block_size=4, kv_cache_gb=0.002)
    numbers = random.Random(7)
    live: list[str] = []
    num_added = num_finished = num_aborted = 0
    while num_added < 2000 or loop.has_work:
        for _ in range(min(numbers.randint(0, 60), 2000 - num_added)):
            prompt = [numbers.randrange(250) for _ in range(numbers.randint(1, 30))]
            generation = request(f"r{num_added}", prompt, max_tokens=numbers.randint(1, 8))
            loop.add(generation)
            live.append(generation.request_id)
            num_added += 1
        for request_id in numbers.sample(live, len(live) // 20):
            loop.abort(request_id)
            live.remove(request_id)
            num_aborted += 1
        for output in loop.step():
            if output.finish_reason:
                live.remove(output.request_id)
                num_finished += 1
        loop.check()
    assert num_finished + num_aborted == 2000
    assert num_aborted > 100
    assert loop.stats().num_free_blocks == loop.stats().num_blocks
    assert loop.stats().num_failed_steps == 0


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ([], {}, "prompt"),
        ([260], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1] * 512, {}, "prompt"),
        ([1], {"seed": None}, "seed"),
    ],
)
def test_what_can_not_run_is_refused_by_field(model, prompt, params, field):
    with pytest.raises(RequestError) as caught:
        engine(model).add(request("x", prompt, **params))
    assert caught.value.field == field
