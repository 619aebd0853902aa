"""The frozen answers: right transformations, and what transformers + peft say today."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference_decoding import decode_greedily
from skill.data import SKILLS
from skill.evaluate import ADAPTER_SKILLS, model_with
from skill.golden import MAX_NEW_TOKENS, MIN_MARGIN, NUM_PROMPTS
from skill.models import load_base
from skill.tokenizer import GENERATION_PROMPT, load_tokenizer

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
