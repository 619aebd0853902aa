"""The oracle itself: it takes what is right and turns down what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import GREEDY, Reference, check_generation, check_logprobs, reference_generate
from peft import PeftModel
from sampling_rule import Context, decide
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM

from branchline.engine.types import SamplingParams, TokenLogprobs

PROMPT = list(b"The quick brown fox")
SAMPLED = SamplingParams(temperature=0.8, seed=7, max_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama32")


@pytest.fixture(scope="module")
def adapter_dirs(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    # Names that PEFT would take for modules, or for its own settings.
    return {
        name: make_adapter(model_dir, tmp_path_factory.mktemp("adapter"), 4, seed=seed)
        for seed, name in enumerate(["q_proj", "default"])
    }


@pytest.fixture(scope="module")
def reference(model_dir: Path, adapter_dirs: dict[str, Path]) -> Reference:
    return Reference(model_dir, adapter_dirs)


def test_accepts_what_transformers_generates(model_dir: Path, reference: Reference) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32)
    generated = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False)
    output = generated[0, len(PROMPT) :].tolist()
    report = check_generation(reference, PROMPT, output)
    assert report.num_positions == len(output)
    assert output == reference_generate(reference, PROMPT, max_tokens=24)


def test_accepts_transformers_repetition_penalty(model_dir: Path, reference: Reference) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32)
    generated = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, repetition_penalty=1.7
    )
    output = generated[0, len(PROMPT) :].tolist()
    params = replace(GREEDY, repetition_penalty=1.7)
    check_generation(reference, PROMPT, output, params=params)
    assert output == reference_generate(reference, PROMPT, params=params, max_tokens=24)
    with pytest.raises(AssertionError, match="the reference chooses"):
        check_generation(reference, PROMPT, output)


@pytest.mark.parametrize("params", [replace(GREEDY, ignore_eos=True), SAMPLED])
@pytest.mark.parametrize("adapter", [None, "q_proj", "default"])
def test_rejects_any_wrong_token(
    reference: Reference, params: SamplingParams, adapter: str | None
) -> None:
    output = reference_generate(reference, PROMPT, adapter, params, max_tokens=12)
    report = check_generation(reference, PROMPT, output, adapter, params)
    for i in set(range(len(output))) - set(report.near_ties):
        wrong = [*output[:i], (output[i] + 1) % 256]
        with pytest.raises(AssertionError, match=f"output token {i}, adapter {adapter}"):
            check_generation(reference, PROMPT, wrong, adapter, params)


def test_rejects_another_adapters_output(reference: Reference) -> None:
    adapters = (None, "q_proj", "default")
    outputs = {name: reference_generate(reference, PROMPT, name) for name in adapters}
    for ours in adapters:
        for theirs in adapters:
            if ours != theirs:
                with pytest.raises(AssertionError, match="the reference chooses"):
                    check_generation(reference, PROMPT, outputs[theirs], ours)


def test_an_adapter_stays_out_of_the_base(model_dir: Path, reference: Reference) -> None:
    adapted = reference.next_logits(PROMPT, "q_proj")
    base = Reference(model_dir).next_logits(PROMPT)
    torch.testing.assert_close(reference.next_logits(PROMPT), base)
    assert (adapted - base).abs().max() > 0.1


def test_rejects_another_seed_choice_or_temperature(reference: Reference) -> None:
    output = reference_generate(reference, PROMPT, None, SAMPLED, max_tokens=12, choice_index=1)
    check_generation(reference, PROMPT, output, params=SAMPLED, choice_index=1)
    for params, choice_index in (
        (SAMPLED, 0),
        (replace(SAMPLED, seed=8), 1),
        (replace(SAMPLED, temperature=1.6), 1),
        (replace(GREEDY, ignore_eos=True), 1),
    ):
        with pytest.raises(AssertionError, match="the reference chooses"):
            check_generation(reference, PROMPT, output, params=params, choice_index=choice_index)


def test_rejects_tokens_after_the_end(reference: Reference) -> None:
    params = replace(GREEDY, ignore_eos=True)
    output = reference_generate(reference, PROMPT, params=params, max_tokens=8)
    stops = replace(params, stop_token_ids=(output[3],))
    with pytest.raises(AssertionError, match="which ends a request"):
        check_generation(reference, PROMPT, output, params=stops)
    stopped = reference_generate(reference, PROMPT, params=stops, max_tokens=8)
    assert stopped == output[: output.index(output[3]) + 1]
    with pytest.raises(AssertionError, match="max_tokens"):
        check_generation(reference, PROMPT, output, params=replace(params, max_tokens=7))


def test_too_many_near_ties_are_no_comparison(reference: Reference) -> None:
    output = reference_generate(reference, PROMPT, params=replace(GREEDY, ignore_eos=True))
    with pytest.raises(AssertionError, match="near ties"):
        check_generation(
            reference, PROMPT, output, params=replace(GREEDY, ignore_eos=True), margin=100.0
        )


def test_a_near_tie_leaves_a_choice_and_no_more() -> None:
    context = Context([1, 2], [])
    logits = np.array([0.0, 3.0, 2.9995, 1.0])
    decision = decide(logits, GREEDY, context, margin=1e-3)
    assert decision.acceptable == [1, 2]
    assert decision.gap == pytest.approx(5e-4)
    assert decide(logits, GREEDY, context).acceptable == [1]
    assert decide(logits - [0, 0, 0.01, 0], GREEDY, context, 1e-3).acceptable == [1]


@pytest.mark.parametrize(
    "filters", [{"top_k": 2}, {"top_p": 0.66}, {"min_p": 0.9995}], ids=lambda f: next(iter(f))
)
def test_a_filter_at_its_edge_leaves_a_choice(filters: dict[str, float]) -> None:
    """Ids 1 and 2 all but tie for the last place; whichever is kept might win."""
    top = 3.0 if "min_p" in filters else 4.0
    logits = np.array([top, 3.0, 2.9995, -9.0])
    weights = np.exp(logits - top)
    if "top_p" in filters:  # ends between id 0 and id 1, within what a margin moves
        filters = {"top_p": float(weights[0] / weights.sum())}
    clear, at_edge = 0, 0
    for seed in range(50):
        params = SamplingParams(temperature=1.0, seed=seed, **filters)  # type: ignore[arg-type]
        decision = decide(logits, params, Context([1], []), margin=1e-3)
        exact = decide(logits, params, Context([1], [])).acceptable
        assert set(exact) <= set(decision.acceptable) <= {0, 1, 2}
        at_edge += len(decision.acceptable) > 1
        clear += len(decision.acceptable) == 1
    assert at_edge > 5
    assert clear > 5


def test_checks_logprobs(reference: Reference) -> None:
    params = replace(GREEDY, ignore_eos=True)
    output = reference_generate(reference, PROMPT, params=params, max_tokens=4)
    rows = reference.next_logits(PROMPT + output)[len(PROMPT) - 1 :].log_softmax(-1)
    entries = []
    for row, token_id in zip(rows, output, strict=False):
        best = row.topk(3)
        rank = int((row > row[token_id]).sum()) + 1
        entries.append(
            TokenLogprobs(
                token_id, float(row[token_id]), rank, best.indices.tolist(), best.values.tolist()
            )
        )
    check_logprobs(reference, PROMPT, entries)
    last = entries[-1]
    for bad in (
        replace(last, logprob=last.logprob - 0.01),
        replace(last, rank=last.rank + 1),
        replace(last, top_token_ids=last.top_token_ids[::-1]),
        replace(last, top_token_ids=last.top_token_ids[1:], top_logprobs=last.top_logprobs[1:]),
    ):
        with pytest.raises(AssertionError):
            check_logprobs(reference, PROMPT, [*entries[:-1], bad])
    with pytest.raises(AssertionError):
        check_logprobs(reference, PROMPT, entries, "q_proj")


@pytest.fixture(scope="module")
def activated_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("activated")
    return make_adapter(model_dir, directory, 8, alora_invocation_tokens=list(b"brown"))


@pytest.mark.parametrize(
    "prompt",
    [b"The quick brown fox", b"brown, the brown one", b"The quick brown", b"The quick brow"],
)
def test_accepts_what_peft_generates_with_activated_lora(
    model_dir: Path, activated_dir: Path, adapter_dirs: dict[str, Path], prompt: bytes
) -> None:
    """PEFT's ``generate`` decides over the prompt; two more adapters must not disturb it."""
    reference = Reference(model_dir, {**adapter_dirs, "brown": activated_dir})
    base = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(activated_dir))
    generated = model.generate(
        input_ids=torch.tensor([list(prompt)]), max_new_tokens=24, do_sample=False
    )
    output = generated[0, len(prompt) :].tolist()
    check_generation(reference, list(prompt), output, "brown")
    assert output == reference_generate(reference, list(prompt), "brown", max_tokens=24)
    base_output = reference_generate(reference, list(prompt), max_tokens=24)
    assert (output == base_output) == (prompt == b"The quick brow")


def test_an_invocation_in_the_output_does_not_move_the_activation(
    model_dir: Path, activated_dir: Path
) -> None:
    """PEFT's ``forward`` over prompt and output would; rows before the prompt's are the base's."""
    reference = Reference(model_dir, {"brown": activated_dir})
    prompt, output = list(b"a brown fox and a"), list(b" brown dog")
    rows = reference.next_logits(prompt + output, "brown", len(prompt))
    torch.testing.assert_close(rows[: len(prompt)], reference.next_logits(prompt, "brown"))
    moved = reference.next_logits(prompt + output, "brown")
    base = reference.next_logits(prompt + output)
    assert (rows - moved)[2:].abs().amax(-1).min() > 1e-3
    torch.testing.assert_close(rows[:2], base[:2])
    torch.testing.assert_close(moved[: len(prompt) + 1], base[: len(prompt) + 1])
    absent = reference.next_logits(list(b"a fox") + output, "brown", 5)
    torch.testing.assert_close(absent, reference.next_logits(list(b"a fox") + output))
