"""The frozen answers: right transformations, and what transformers + peft say today."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_decoding import decode_greedily
from skill.data import SKILLS
from skill.evaluate import ADAPTER_SKILLS, model_with
from skill.golden import MAX_NEW_TOKENS, MIN_MARGIN, NUM_PROMPTS
from skill.models import load_base
from skill.tokenizer import GENERATION_PROMPT, load_tokenizer

from branchline import LLM, SamplingParams
from branchline.engine.models.config import ModelConfig
from branchline.engine.module_shapes import module_shapes
from branchline.lora.adapter import AdapterConfig
from branchline.lora.fp8_pages import to_pages
from branchline.lora.loader import load_adapter
from branchline.tests.support.lora_reference import dense_delta

NEAR_TIE = 1e-3
GoldenFile = Callable[[str], list[dict[str, Any]]]


def test_answers_are_the_right_transformations(golden_file: GoldenFile) -> None:
    golden = golden_file("skill")
    assert Counter(answer["adapter"] for answer in golden) == dict.fromkeys(
        ADAPTER_SKILLS, NUM_PROMPTS
    )
    for answer in golden:
        items = answer["messages"][0]["content"].split()
        assert len(set(items)) == len(items)
        assert 3 <= len(items) <= 5
        assert answer["text"] == " ".join(SKILLS[ADAPTER_SKILLS[answer["adapter"]]](items))
        assert answer["min_margin"] >= MIN_MARGIN


def test_token_ids_are_the_tokenizer_s(golden_file: GoldenFile, examples: Path) -> None:
    tokenizer = load_tokenizer(examples / "skill" / "model")
    for answer in golden_file("skill"):
        prompt = tokenizer.apply_chat_template(
            answer["messages"], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.encode(prompt, add_special_tokens=False) == answer["prompt_token_ids"]
        assert answer["token_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(answer["token_ids"][:-1]) == answer["text"]


@pytest.mark.parametrize("adapter", ADAPTER_SKILLS)
def test_transformers_and_peft_agree(
    adapter: str | None, golden_file: GoldenFile, examples: Path
) -> None:
    skill = examples / "skill"
    sample = [answer for answer in golden_file("skill") if answer["adapter"] == adapter][:4]
    with model_with(load_base(skill / "model"), skill / "adapters", adapter) as model:
        for answer in sample:
            stops = model.generation_config.eos_token_id
            decoded = decode_greedily(model, answer["prompt_token_ids"], MAX_NEW_TOKENS, stops)
            assert decoded.token_ids == answer["token_ids"]
            assert min(decoded.margins) == pytest.approx(answer["min_margin"], abs=1e-2)


def test_adapters_in_8_bits_give_the_same_answers(golden_file: GoldenFile, examples: Path) -> None:
    """The activated one and the base's among them."""
    golden, skill = golden_file("skill"), examples / "skill"
    names = [name for name in ADAPTER_SKILLS if name is not None]
    llm = LLM(
        skill / "model",
        {name: skill / "adapters" / name for name in names},
        adapter_dtype="fp8",
        dtype="float32",
        device="cpu",
        kv_cache_gb=0.1,
        num_threads=1,
    )
    outputs = llm.chat(
        [answer["messages"] for answer in golden],
        SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS),
        adapter=[answer["adapter"] for answer in golden],
        use_tqdm=False,
    )
    assert [o.outputs[0].text for o in outputs] == [answer["text"] for answer in golden]


@pytest.mark.parametrize("adapter", sorted(ADAPTER_SKILLS.keys() - {None}))
def test_trained_deltas_in_8_bits(adapter: str, examples: Path) -> None:
    """On average over the linears; docs/serving.md has these figures."""
    skill = examples / "skill"
    shapes = module_shapes(ModelConfig.from_directory(skill / "model"))
    path = skill / "adapters" / adapter
    exact = load_adapter(path, AdapterConfig.from_directory(path), shapes)
    rounded = to_pages(exact, shapes, torch.float32, torch.float8_e4m3fn)
    errors = []
    for name, group in exact.groups.items():
        sizes = shapes.groups[name].slice_sizes
        for layer in range(shapes.num_layers):
            ours, theirs = (
                dense_delta(weights, layer, sizes).split(sizes)
                for weights in (rounded.groups[name], group)
            )
            for got, expected in zip(ours, theirs, strict=True):
                if expected.any():
                    errors.append(float((got - expected).norm() / expected.norm()))
    assert 0.020 < sum(errors) / len(errors) < 0.030
    assert max(errors) < 0.04


def test_adapters_hold_no_path_and_the_activated_one_its_tokens(examples: Path) -> None:
    tokenizer = load_tokenizer(examples / "skill" / "model")
    invocation = tokenizer.encode(GENERATION_PROMPT, add_special_tokens=False)
    directories = [*(examples / "skill" / "adapters").iterdir()]
    directories += (examples / "smollm2" / "voices").iterdir()
    for directory in directories:
        config = json.loads((directory / "adapter_config.json").read_text())
        assert not config["base_model_name_or_path"].startswith("/")
        activated = directory.name == "shout-alora"
        assert config["alora_invocation_tokens"] == (invocation if activated else None)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "king-james", "devils-dictionary", "austen"])
def test_smollm2_continues_as_frozen(
    adapter: str | None, golden_file: GoldenFile, examples: Path, smollm2: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    golden = [g for g in golden_file("smollm2") if g["adapter"] == adapter]
    assert len(golden) >= 2
    model: Any = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    if adapter is not None:
        path = examples / "smollm2" / "voices" / adapter
        model = PeftModel.from_pretrained(model, path, adapter_name="voice").eval()
    frozen = golden[0]
    num_sure = next(
        (i for i, margin in enumerate(frozen["margins"]) if margin < NEAR_TIE),
        len(frozen["margins"]),
    )
    stops = model.generation_config.eos_token_id
    decoded = decode_greedily(model, frozen["prompt_token_ids"], max(1, num_sure), stops)
    assert num_sure >= 3
    assert decoded.token_ids == frozen["token_ids"][:num_sure]
