"""``LLM`` in this process, on a tiny real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline import LLM, SamplingParams
from branchline.engine.errors import RequestError
from branchline.lora.errors import BranchlineError

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENGINE: dict[str, Any] = {"dtype": "float32", "device": "cpu", "kv_cache_gb": 0.01}
ENGINE |= {"adapter_memory_gb": 0.05}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    root = tmp_path_factory.mktemp("llm")
    model = make_tiny_model(root / "model", "llama")
    lora = {
        "a": make_adapter(model, root / "a", 4),
        "b": make_adapter(model, root / "b", 8, seed=1),
    }
    return LLM(model, lora, num_threads=1, **ENGINE)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(llm: LLM) -> Any:
    yield
    assert not llm._engine.has_work
    llm._engine.check()
    stats = llm._engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def texts(llm: LLM, prompts: Any, params: Any = GREEDY, **options: Any) -> list[str]:
    outputs = llm.generate(prompts, params, use_tqdm=False, **options)
    return [output.outputs[0].text for output in outputs]


def test_prompts_in_every_form(llm: LLM) -> None:
    [alone] = texts(llm, "abc")
    assert texts(llm, ["abc", "xyz"])[0] == alone
    assert texts(llm, list(b"abc")) == [alone]
    assert texts(llm, [list(b"abc"), list(b"xyz")])[0] == alone
    assert texts(llm, (tuple(b"abc"),)) == [alone]


def test_no_prompts_are_no_outputs(llm: LLM) -> None:
    assert llm.generate([]) == llm.chat([]) == []


def test_adapters_one_for_all_or_one_each(llm: LLM) -> None:
    base, a, b = (texts(llm, "abc", adapter=name)[0] for name in (None, "a", "b"))
    assert len({base, a, b}) == 3
    assert texts(llm, ["abc"] * 3, adapter=[None, "a", "b"]) == [base, a, b]
    assert texts(llm, ["abc"] * 2, adapter="b") == [b, b]
    output = llm.generate("abc", GREEDY, adapter="a", use_tqdm=False)[0]
    assert (output.adapter, output.prompt) == ("a", "abc")
    assert output.prompt_token_ids == list(b"abc")


def test_parameters_one_for_all_or_one_each(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 2, 3)]
    outputs = llm.generate(["a", "b", "c"], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]
    assert all(output.outputs[0].finish_reason == "length" for output in outputs)
    assert llm.generate("a" * 500, use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 2.0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
        ("logit_bias", {10**6: 1.0}),
        ("logit_bias", {5: float("nan")}),
        ("stop", ("",)),
        ("stop_token_ids", (-1,)),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -1),
        ("seed", 2**64),
        ("n", 0),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(llm: LLM, field: str, value: Any) -> None:
    params = SamplingParams(**{field: value})
    with pytest.raises(BranchlineError, match=f"^{field}: "):
        llm.generate("abc", params, use_tqdm=False)


def test_one_stop_string_is_one(llm: LLM) -> None:
    """Not its characters: an "A" alone ends nothing."""
    params: Any = {"logit_bias": {65: 100.0}, "max_tokens": 5, "ignore_eos": True}
    assert texts(llm, "abc", SamplingParams(stop="Ax", **params)) == ["AAAAA"]


def test_an_adapter_that_is_not_there_is_named(llm: LLM) -> None:
    with pytest.raises(BranchlineError, match="adapter gone: there is no directory /no/such"):
        LLM(llm._catalog.base.root, {"gone": "/no/such"})


def test_choices(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=8, ignore_eos=True)
    [first] = llm.generate("abc", params, use_tqdm=False)
    [second] = llm.generate("abc", params, use_tqdm=False)
    assert [one.index for one in first.outputs] == [0, 1, 2]
    assert len({one.text for one in first.outputs}) == 3
    assert first.outputs == second.outputs


def test_stop_strings(llm: LLM) -> None:
    params = SamplingParams(stop=("AA",), logit_bias={65: 100.0}, max_tokens=20)
    [output] = llm.generate("abc", params, use_tqdm=False)
    assert output.outputs[0].text == ""
    assert output.outputs[0].token_ids == [65, 65]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "AA")


def test_logprobs(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, ignore_eos=True)
    [output] = llm.generate("abc", params, use_tqdm=False)
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    assert [entry.token_id for entry in logprobs] == output.outputs[0].token_ids
    assert llm.generate("abc", GREEDY, use_tqdm=False)[0].outputs[0].logprobs is None


def test_chats(llm: LLM) -> None:
    chat = [{"role": "user", "content": "hi"}]
    [output] = llm.chat(chat, GREEDY, adapter="a", use_tqdm=False)
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt == rendered
    assert output.outputs[0].text == texts(llm, rendered, adapter="a")[0]
    both = llm.chat([chat, chat], GREEDY, adapter=["a", None], use_tqdm=False)
    assert both[0].outputs == output.outputs
    assert both[1].outputs != output.outputs


def test_hundreds_of_prompts_finish_in_their_order(llm: LLM) -> None:
    prompts = [f"prompt {index}" for index in range(300)]
    adapters = [(None, "a", "b")[index % 3] for index in range(300)]
    together = texts(llm, prompts, adapter=adapters)
    for index in (0, 7, 299):
        assert texts(llm, prompts[index], adapter=adapters[index]) == [together[index]]


def test_progress_is_shown(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["a", "b"], {"adapter": ["a"]}, "1 of them for 2 prompts"),
        (["a", "b"], {"sampling_params": [GREEDY]}, "1 of them for 2 prompts"),
        ("a", {"adapter": "zz"}, "'zz' is not loaded; loaded: a, b"),
        ("a" * 600, {}, "512"),
        ([[1], [1, 9999]], {}, "260"),
        (["fine", ""], {}, "at least one token"),
    ],
)
def test_what_can_not_run_is_refused_before_anything_does(
    llm: LLM, prompts: Any, options: Any, message: str
) -> None:
    with pytest.raises(BranchlineError, match=message):
        llm.generate(prompts, use_tqdm=False, **options)


def test_a_wrong_option_is_named(tmp_path: Path, llm: LLM) -> None:
    model = llm._engine.info.model
    with pytest.raises(TypeError, match="max_sequences"):
        LLM(model, max_sequences=3)
    with pytest.raises(ValueError, match="block_size"):
        LLM(model, block_size=0)
    with pytest.raises(BranchlineError, match="no directory"):
        LLM(tmp_path / "nothing")
    assert issubclass(RequestError, BranchlineError)


def test_a_prompt_that_comes_again_is_found(llm: LLM) -> None:
    prompt = "never pay twice for this prompt, nor for the answer " * 2
    cold, warm = (llm.generate(prompt, GREEDY, use_tqdm=False)[0] for _ in range(2))
    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens == (len(prompt) - 1) // 16 * 16
    assert warm.outputs[0].text == cold.outputs[0].text
    several = SamplingParams(temperature=0, max_tokens=2, n=3, ignore_eos=True)
    fresh = llm.generate("a new prompt, longer than a block", several, use_tqdm=False)[0]
    assert fresh.num_cached_tokens == 0, "what one choice computed is not cached for the others"


def test_many_more_prompts_than_a_server_would_queue(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    outputs = llm.generate(["a"] * 2100, params, use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_a_queue_limit_of_ones_own_is_said_by_prompt(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", "llama")
    options = {"max_queued_requests": 2, "max_num_seqs": 1}  # free seats are no queue
    limited = LLM(model, num_threads=1, **ENGINE, **options)
    outputs = limited.generate(["a"] * 5, GREEDY, use_tqdm=False)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == ["length"] * 3 + ["error"] * 2
    assert outputs[-1].outputs[0].error
