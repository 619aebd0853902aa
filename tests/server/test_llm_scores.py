"""What ``LLM`` says beside text: prompt logprobs, vectors, beams, and what it never says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM

from branchline import LLM, SamplingParams
from branchline.engine.types import Grammar
from branchline.lora.errors import BranchlineError

OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_threads": 1}
OPTIONS |= {"adapter_memory_gb": 0.05}
PROMPT = "a prompt of some blocks, so that there is something to share"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("llm") / "model", "llama")


@pytest.fixture(scope="module")
def llm(directory: Path) -> LLM:
    lora = {"a": make_adapter(directory, directory.parent / "a", 4)}
    return LLM(directory, lora, kv_cache_gb=0.01, **OPTIONS)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(llm: LLM) -> Any:
    yield
    assert not llm._engine.has_work
    llm._engine.check()


@torch.inference_mode()
def reference_logprobs(reference: Any, token_ids: list[int]) -> torch.Tensor:
    logits = reference(torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.double(), -1)


@torch.inference_mode()
def reference_hidden(reference: Any, token_ids: list[int]) -> np.ndarray:
    hidden = reference.model(torch.tensor([token_ids])).last_hidden_state[0]
    return np.asarray(hidden.double().numpy())


def test_prompt_logprobs_are_transformers(llm: LLM, reference: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=3)
    for _ in range(2):  # the second time the prompt could be cached
        [output] = llm.generate(PROMPT, params, use_tqdm=False)
        assert output.outputs[0].token_ids == []
        assert output.outputs[0].finish_reason == "length"
        entries = output.prompt_logprobs
        assert entries is not None
        assert entries[0] is None
        expected = reference_logprobs(reference, output.prompt_token_ids)
        assert len(entries) == len(output.prompt_token_ids)
        for place, entry in enumerate(entries[1:], 1):
            assert entry is not None
            token_id = output.prompt_token_ids[place]
            row = expected[place - 1]
            assert entry.token_id == token_id
            assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
            assert entry.rank == 1 + int((row > row[token_id]).sum())
            assert entry.top_logprobs == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_choices_share_one_scoring_of_their_prompt(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=3, n=3, prompt_logprobs=0, ignore_eos=True)
    [output] = llm.generate(PROMPT, params, use_tqdm=False)
    assert len(output.outputs) == 3
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_transformers(llm: LLM, reference: Any, pooling: Any) -> None:
    prompts = [PROMPT, "b", "another text" * 9, PROMPT]
    outputs = llm.embed(prompts, pooling=pooling, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        hidden = reference_hidden(reference, list(prompt.encode()))
        expected = hidden[-1] if pooling == "last" else hidden.mean(0)
        expected = expected / np.linalg.norm(expected)
        assert output.prompt == prompt
        assert np.abs(np.array(output.embedding) - expected).max() < 1e-5
    [short] = llm.embed(PROMPT, pooling=pooling, dimensions=7, use_tqdm=False)
    cut = np.array(outputs[0].embedding[:7])
    assert short.embedding == pytest.approx((cut / np.linalg.norm(cut)).tolist(), abs=1e-6)


def test_an_adapter_has_vectors_of_its_own(llm: LLM) -> None:
    base, own = llm.embed([PROMPT] * 2, adapter=[None, "a"], use_tqdm=False)
    assert np.dot(base.embedding, own.embedding) < 0.9999
    assert own.adapter == "a"


def test_vectors_that_can_not_be_had_are_refused(llm: LLM) -> None:
    options: dict[str, Any]
    for options, field in [({"pooling": "cls"}, "pooling"), ({"dimensions": 10**6}, "dimensions")]:
        with pytest.raises(BranchlineError, match=f"^{field}: "):
            llm.embed("x", use_tqdm=False, **options)


@torch.inference_mode()
def searched(reference: Any, prompt: str, width: int, length: int, penalty: float) -> Any:
    ids = torch.tensor([list(prompt.encode())])
    found = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=length,
        length_penalty=penalty,
        early_stopping="never",
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=258,
        pad_token_id=259,
    )
    texts = [
        [one for one in row if one != 259] for row in found.sequences[:, ids.shape[1] :].tolist()
    ]
    return texts, found.sequences_scores.tolist()


@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_beams_are_transformers(llm: LLM, reference: Any, penalty: float) -> None:
    expected, scores = searched(reference, PROMPT, 4, 6, penalty)
    params = SamplingParams(max_tokens=6, logprobs=1)
    [output] = llm.beam_search(PROMPT, params, beam_width=4, length_penalty=penalty, use_tqdm=False)
    assert [one.token_ids for one in output.outputs] == expected
    for one, score in zip(output.outputs, scores, strict=True):
        assert one.cumulative_logprob is not None
        mine = one.cumulative_logprob / len(one.token_ids) ** penalty
        assert mine == pytest.approx(score, abs=1e-4)
        assert one.logprobs is not None
        assert sum(x.logprob for x in one.logprobs) == pytest.approx(one.cumulative_logprob)


def test_a_beam_of_one_is_greedy_and_many_prompts_go_together(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=5)
    prompts = [f"prompt {index}" for index in range(9)]
    plain = llm.generate(prompts, greedy, use_tqdm=False)
    beams = llm.beam_search(prompts, greedy, beam_width=1, use_tqdm=False)
    for one, other in zip(plain, beams, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].text == other.outputs[0].text
    alone = llm.beam_search(prompts[3], greedy, beam_width=3, use_tqdm=False)[0]
    together = llm.beam_search(prompts, greedy, beam_width=3, use_tqdm=False)[3]
    assert [x.token_ids for x in alone.outputs] == [x.token_ids for x in together.outputs]


def test_beams_share_the_blocks_of_their_prompt(llm: LLM) -> None:
    before = llm._engine.stats().num_computed_prompt_tokens
    prompt = "never seen before: " + "x" * 205
    llm.beam_search(prompt, SamplingParams(max_tokens=4), beam_width=4, use_tqdm=False)
    computed = llm._engine.stats().num_computed_prompt_tokens - before
    assert computed < len(prompt) + 13 * 16, "thirteen steps, of a block each at most"


def test_what_a_search_can_not_honour_is_refused(llm: LLM) -> None:
    for field, value in {
        "stop": "x",
        "logit_bias": {1: 1.0},
        "n": 2,
        "bad_word_ids": [[1]],
    }.items():
        params = SamplingParams(**{"max_tokens": 2, field: value})  # type: ignore[arg-type]
        with pytest.raises(BranchlineError, match=f"^{field}: "):
            llm.beam_search("x", params, use_tqdm=False)
    with pytest.raises(BranchlineError, match="beam_width"):
        llm.beam_search("x", beam_width=0, use_tqdm=False)


def test_only_allowed_tokens_are_said(llm: LLM) -> None:
    allowed = [97, 98, 99]
    params = SamplingParams(seed=3, max_tokens=30, allowed_token_ids=allowed, n=2)  # type: ignore[arg-type]
    free = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    limited, other = llm.generate([PROMPT] * 2, [params, free], use_tqdm=False)
    for one in limited.outputs:
        assert set(one.token_ids) == set(allowed)
        assert one.finish_reason == "length"
    assert other.outputs == llm.generate(PROMPT, free, use_tqdm=False)[0].outputs


def test_bad_words_are_never_completed(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    said = llm.generate(PROMPT, greedy, use_tqdm=False)[0].outputs[0].token_ids
    bad = [said[3:4], said[5:8]]
    params = SamplingParams(
        temperature=0,
        max_tokens=40,
        ignore_eos=True,
        bad_word_ids=bad,  # type: ignore[arg-type]
    )
    now = llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].token_ids
    assert now[:3] == said[:3]
    for word in bad:
        assert not any(now[i : i + len(word)] == word for i in range(len(now)))
    assert llm.bad_word_ids(["no"]) == (tuple(b"no"), tuple(b" no"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", 5),
        ("stop", ["a", 5]),
        ("temperature", "hot"),
        ("max_tokens", 2.5),
        ("max_tokens", 0),
        ("n", True),
        ("grammar", "[0-9]"),
        ("allowed_token_ids", [9999]),
        ("bad_word_ids", [[]]),
        ("bad_word_ids", [7]),
        ("logit_bias", [1]),
        ("prompt_logprobs", -1),
        ("repetition_penalty", 1e-30),
    ],
)
def test_a_wrong_parameter_is_named(llm: LLM, field: str, value: Any) -> None:
    with pytest.raises(BranchlineError, match=f"^{field}: "):
        llm.generate("abc", SamplingParams(**{field: value}), use_tqdm=False)


def test_lists_are_as_good_as_tuples(llm: LLM) -> None:
    params = SamplingParams(stop=["AA"], logit_bias={65: 100.0}, max_tokens=20)  # type: ignore[arg-type]
    assert llm.generate("abc", params, use_tqdm=False)[0].outputs[0].stop_reason == "AA"


def test_a_grammar_holds_here_too(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=30, grammar=Grammar("regex", "[0-9]{3}-[a-c]{2}"))
    outputs = llm.generate(["x", "y"], params, use_tqdm=False)
    for output in outputs:
        text = output.outputs[0].text
        assert len(text) == 6
        assert text[3] == "-"
        assert output.outputs[0].finish_reason == "stop"


def test_chats_with_tools_and_begun_answers(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=2)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "wel"}]
    [output] = llm.chat(chat, greedy, continue_final_message=True, use_tqdm=False)
    assert output.prompt is not None
    assert output.prompt.endswith("assistant\nwel")
    [plain] = llm.chat(chat, greedy, add_generation_prompt=False, use_tqdm=False)
    assert plain.prompt is not None
    assert plain.prompt.endswith("wel<|im_end|>\n")
    with pytest.raises(BranchlineError, match="continue_final_message"):
        llm.chat(chat, add_generation_prompt=True, continue_final_message=True, use_tqdm=False)
    with pytest.raises(BranchlineError, match="messages"):
        llm.chat(["hi"], use_tqdm=False)  # type: ignore[list-item]


def test_tools_reach_the_template(directory: Path) -> None:
    template = (
        "{% for t in tools %}{{ t['function']['name'] }};{% endfor %}{{ messages[0]['content'] }}"
    )
    own = LLM(directory, chat_template=template, kv_cache_gb=0.01, **OPTIONS)
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    params = SamplingParams(temperature=0, max_tokens=1)
    chat = [{"role": "user", "content": "hi"}]
    [output] = own.chat(chat, params, tools=tools, use_tqdm=False)
    assert output.prompt == "look_up;hi"


def test_a_seed_says_the_same_alone_in_a_crowd_and_after_preemption(directory: Path) -> None:
    def answers(llm: LLM, prompts: list[str], seeds: list[int]) -> list[list[int]]:
        params = [
            SamplingParams(
                seed=seed, max_tokens=48, ignore_eos=True, top_p=0.95, frequency_penalty=0.3
            )
            for seed in seeds
        ]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    roomy = LLM(directory, kv_cache_gb=0.01, max_num_seqs=32, **OPTIONS)
    prompts, seeds = [f"prompt {index} " * 3 for index in range(32)], list(range(32))
    crowd = answers(roomy, prompts, seeds)
    for index in (0, 13, 31):
        assert answers(roomy, prompts[index : index + 1], [seeds[index]]) == [crowd[index]]
    per_block = 2**30 * 0.01 / roomy._engine.info.num_blocks
    tight = LLM(directory, kv_cache_gb=40 * per_block / 2**30, max_num_seqs=32, **OPTIONS)
    assert answers(tight, prompts, seeds) == crowd
    assert tight._engine.stats().num_preemptions > 0
    assert math.isfinite(per_block)


@pytest.mark.slow
def test_thousands_of_prompts(llm: LLM) -> None:
    prompts = [f"p{index}" for index in range(2000)]
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert len(llm.embed(prompts, use_tqdm=False)) == 2000
