"""Logprobs of prompts and vectors of them, in one batch with all else, as transformers + peft."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from engine_run import check_generations
from graph_house import make_served, open_house
from oracle import Reference
from prompt_batch import (
    MAX_TOKENS,
    NUM_TOP,
    Served,
    mixed_requests,
    prompt_for,
    request,
    run,
    serve,
    start,
    tokens_of,
)
from prompt_oracle import check_prompt_logprobs, check_prompts

from branchline.engine import prompt_reader
from branchline.engine.errors import RequestError
from branchline.engine.loop import EngineLoop
from branchline.engine.types import TokenOutput

QUICK = ("llama", "gemma2")
SLOW = ("llama31", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "smollm3")
SHORT_CONTEXT = 32
"""Phi-3's tiny model switches rope factors here; served up to it, both sides use the short ones."""

KV_BYTES_PER_TOKEN = 2 * 4 * 4 * 16 * 4
SCORED = "rank 8"


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    return cache(lambda family: serve(tmp_path_factory.mktemp(family), family))


@pytest.fixture(scope="module")
def served(families: Callable[[str], Served]) -> Served:
    return families("llama")


@pytest.fixture(scope="module")
def loop(served: Served) -> EngineLoop:
    return start(served, block_size=4)


def check_batch(served: Served, longest: int = 24, **options: Any) -> EngineLoop:
    """A mixed batch of an engine with these options, all of it against the reference."""
    generations = mixed_requests(served, longest)
    loop = start(served, **options)
    outputs = run(loop, generations)
    check_prompts(served.reference, generations, outputs)
    talking = [each for each in generations if each.pooling is None and each.params.max_tokens]
    assert len(talking) == 2 * (1 + len(served.adapters))
    check_generations(served.reference, talking, tokens_of(outputs))
    assert all(len(tokens_of(outputs)[each.request_id]) == MAX_TOKENS for each in talking)
    scored = [each for each in generations if each.params.max_tokens == 0]
    assert all(outputs[each.request_id][-1].finish_reason == "length" for each in scored)
    return loop


@pytest.mark.parametrize(
    "family", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_a_mixed_batch_is_what_transformers_and_peft_say(
    families: Callable[[str], Served], family: str
) -> None:
    short = family == "phi3"
    options = {"max_model_len": SHORT_CONTEXT} if short else {}
    check_batch(families(family), 18 if short else 24, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 7, "async_scheduling": True},
        pytest.param({"max_num_batched_tokens": 1}, marks=pytest.mark.slow),
        pytest.param({"max_num_batched_tokens": 23}, marks=pytest.mark.slow),
        pytest.param({"max_loras": 2, "async_scheduling": True}, marks=pytest.mark.slow),
        pytest.param({"enable_prefix_caching": False}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options.items())),
)
def test_chunks_and_steps_ahead_change_nothing(served: Served, options: dict[str, Any]) -> None:
    check_batch(served, **options)


@pytest.mark.parametrize("depth", [0, 1])
def test_preempted_ones_go_on_where_they_were(served: Served, depth: int) -> None:
    """Of what was gathered nothing is lost, and nothing comes twice."""
    loop = check_batch(
        served,
        block_size=4,
        max_model_len=64,
        kv_cache_gb=18 * 4 * KV_BYTES_PER_TOKEN / 2**30,
        max_num_batched_tokens=11,
        async_scheduling=bool(depth),
        enable_prefix_caching=False,
    )
    assert loop.stats().num_preemptions > 0


def test_others_in_the_batch_do_not_change_the_tokens(served: Served) -> None:
    generations = mixed_requests(served)
    plain = [each for each in generations if "tokens" in each.request_id]
    alone = tokens_of(run(start(served), plain))
    together = tokens_of(run(start(served), generations))
    assert alone == {each.request_id: together[each.request_id] for each in plain}


def test_logits_come_in_slices_of_bounded_size(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slice has rows of several requests and adapters, and of several vocabularies."""
    num_rows: list[int] = []
    report = prompt_reader.read_report

    def note(values: list[float], token_ids: list[int], counts: list[int]) -> Any:
        num_rows.append(len(token_ids))
        return report(values, token_ids, counts)

    monkeypatch.setattr(prompt_reader, "SLICE_BYTES", 5 * 4 * 260 + 3)
    monkeypatch.setattr(prompt_reader, "read_report", note)
    check_batch(served)
    assert max(num_rows) == 5
    assert len(num_rows) > 20


@pytest.mark.parametrize("adapter", [None, SCORED, "alora"])
def test_a_warm_cache_changes_nothing(
    served: Served, loop: EngineLoop, adapter: str | None
) -> None:
    prompt = prompt_for(adapter, 30, 77)
    loop.reset_cache()
    for heat in ("cold", "warm"):
        generations = [
            request(f"{heat} logprobs", prompt, adapter, prompt_logprobs=2),
            request(f"{heat} mean", prompt, adapter, "mean"),
            request(f"{heat} last", prompt, adapter, "last"),
        ]
        outputs = {}
        for generation in generations:
            outputs |= run(loop, [generation])
        check_prompts(served.reference, generations, outputs)
        cached = [found[0].num_cached_tokens for found in outputs.values()]
        assert cached == [0, 0, len(prompt) // 4 * 4]


def test_what_they_computed_is_found_by_others(loop: EngineLoop) -> None:
    for number, wish in enumerate(({"prompt_logprobs": 0}, {"pooling": "mean"})):
        prompt = prompt_for(None, 22, 500 + number)
        run(loop, [request("first", prompt, **wish)])
        [after] = run(loop, [request("after", prompt)]).values()
        assert after[0].num_cached_tokens == 20


def test_two_of_one_prompt_share_its_blocks_while_both_compute_it(
    served: Served, loop: EngineLoop
) -> None:
    prompt = prompt_for(None, 33, 600)
    pair = [request(name, prompt, prompt_logprobs=1) for name in ("one", "other")]
    check_prompts(served.reference, pair, run(loop, pair))
    assert loop.stats().num_cached_blocks <= loop.stats().num_blocks


def test_logprobs_come_with_the_first_token_that_is_new(served: Served, loop: EngineLoop) -> None:
    prompt = prompt_for(SCORED, 12, 5)
    whole = run(loop, [request("whole", prompt, SCORED, prompt_logprobs=2)])
    tokens = tokens_of(whole)["whole"]
    generation = request("rest", prompt, SCORED, prompt_logprobs=2)
    generation.output_token_ids.extend(tokens[:3])
    outputs = run(loop, [generation])
    assert tokens_of(outputs)["rest"] == tokens[3:]
    check_prompts(served.reference, [generation], outputs)


def test_prompts_of_one_token(served: Served, loop: EngineLoop) -> None:
    generations = [
        request("logprobs", [7], prompt_logprobs=NUM_TOP),
        request("scored", [7], prompt_logprobs=0, max_tokens=0),
        request("mean", [7], pooling="mean"),
        request("last", [7], pooling="last"),
    ]
    outputs = run(loop, generations)
    check_prompts(served.reference, generations, outputs)
    assert outputs["logprobs"][0].prompt_logprobs == [None]
    assert outputs["scored"][0].prompt_logprobs == [None]


def test_no_more_entries_than_there_are_tokens(served: Served, loop: EngineLoop) -> None:
    vocab_size = loop.info.vocab_size
    [outputs] = run(loop, [request("all", [3, 4, 5], prompt_logprobs=vocab_size)]).values()
    logprobs = outputs[0].prompt_logprobs
    check_prompt_logprobs(served.reference, [3, 4, 5], logprobs, num_top=vocab_size)


def test_aborts_at_any_time_leave_nothing_behind(served: Served) -> None:
    generations = mixed_requests(served)[:16]
    expected = tokens_of(run(start(served), generations))
    loop = start(served, max_num_batched_tokens=9, async_scheduling=True)
    for num_steps in range(0, 12, 2):
        for generation in generations:
            loop.add(generation)
        for _ in range(num_steps):
            loop.step()
        for generation in generations:
            loop.abort(generation.request_id)
        while loop.has_work:
            loop.step()
        loop.check()
        assert loop.stats().num_free_blocks == loop.stats().num_blocks
    assert tokens_of(run(loop, generations)) == expected


def test_a_prompt_may_fill_the_context_where_nothing_is_generated(served: Served) -> None:
    loop = start(served, max_model_len=32)
    full = prompt_for(None, 32, 8)
    generations = [
        request("scored", full, prompt_logprobs=1, max_tokens=0),
        request("mean", full, pooling="mean"),
        request("last", full, pooling="last"),
    ]
    check_prompts(served.reference, generations, run(loop, generations))
    for wish in ({"pooling": "last"}, {"max_tokens": 0}):
        with pytest.raises(RequestError, match="prompt: has 33 tokens; the most is 32"):
            loop.add(request("long", [*full, 1], **wish))


@pytest.mark.parametrize(
    ("wish", "field", "reason"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs", r"must be in \[0, 260\]"),
        ({"prompt_logprobs": 261}, "prompt_logprobs", r"must be in \[0, 260\]"),
        ({"prompt_logprobs": 0, "pooling": "mean"}, "prompt_logprobs", "can't be had with pooling"),
        ({"max_tokens": -1}, "max_tokens", "must be at least 0"),
    ],
)
def test_what_can_not_be_is_refused_by_field(
    loop: EngineLoop, wish: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as error:
        loop.add(request("r", [1, 2], **wish))
    assert error.value.field == field
    assert not loop.has_work


@pytest.mark.parametrize("wish", [{"pooling": "mean"}, {"max_tokens": 0}])
def test_output_can_not_be_given_to_what_has_none(loop: EngineLoop, wish: dict[str, Any]) -> None:
    generation = request("r", [1, 2], **wish)
    generation.output_token_ids.append(5)
    with pytest.raises(RequestError, match="must be empty") as error:
        loop.add(generation)
    assert error.value.field == "output_token_ids"


@pytest.mark.parametrize(
    "wish", [{"prompt_logprobs": 1, "max_tokens": 0}, {"pooling": "mean"}, {"pooling": "last"}]
)
def test_a_prompt_without_finite_numbers_ends_alone(tmp_path: Path, wish: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    served = serve(tmp_path, "llama", ())
    weights = load_file(served.model / "model.safetensors")
    weights["model.embed_tokens.weight"][77] = float("nan")
    save_file(weights, served.model / "model.safetensors", metadata={"format": "pt"})
    loop = start(served)
    good = request("good", [5, 6, 7], prompt_logprobs=1)
    loop.add(request("bad", [1, 77, 3, 4], **wish))
    loop.add(good)
    outputs = loop.step()
    while loop.has_work:
        outputs += loop.step()
    loop.check()
    [bad] = [output for output in outputs if output.request_id == "bad"]
    assert bad.finish_reason == "error"
    assert bad.error is not None
    assert "not finite" in bad.error
    rest = [output for output in outputs if output.request_id == "good"]
    check_prompts(served.reference, [good], {"good": rest})


def test_steps_of_decodes_stay_captured_and_others_run_eagerly(tmp_path: Path) -> None:
    served = make_served(tmp_path)
    reference = Reference(served.model, served.adapters)
    house = open_house(served)
    plain = [request(f"plain {i}", [5, 6, i], a) for i, a in enumerate([None, "r8", "dora"])]
    wishes = [
        request("logprobs", [9, 8, 7, 6, 5], "r24", prompt_logprobs=2),
        request("mean", [9, 8], "r8", "mean"),
        request("last", [4], "dora", "last"),
    ]
    for generation in plain:
        house.loop.add(generation)
    outputs = {each.request_id: list[TokenOutput]() for each in [*plain, *wishes]}
    for number in range(20):
        if number == 2:
            for generation in wishes:
                house.loop.add(generation)
        for output in house.loop.step():
            outputs[output.request_id].append(output)
    assert not house.loop.has_work
    assert house.recorder.num_replays > 0
    check_prompts(reference, [*plain, *wishes], outputs)
    check_generations(reference, [*plain, wishes[0]], tokens_of(outputs))
