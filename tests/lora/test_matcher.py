"""Which modules a configuration means: as PEFT answers."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from branchline.lora.adapter import AdapterConfig
from branchline.lora.matcher import ModuleMatcher

MODULES = [
    f"{decoder}.layers.{layer}.{module}"
    for decoder in ("model", "model.language_model")
    for layer in (0, 1, 11)
    for module in ("self_attn.q_proj", "self_attn.qkv_proj", "mlp.down_proj", "mlp.up_proj")
] + ["model.embed_tokens", "lm_head"]

CHOICES: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["proj", "model.layers.0.self_attn.q_proj", "self_attn.qkv_proj"]},
    {"target_modules": r".*layers\.1\..*|lm_head"},
    {"target_modules": r".*_proj", "exclude_modules": ["up_proj"]},
    {"target_modules": ["q_proj", "down_proj"], "exclude_modules": r".*layers\.11\..*"},
    {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1, 11]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head", "mlp"]},
    {"target_modules": [".*"], "modules_to_save": ["layers.0"]},
    {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["self_attn"]},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_targets_are_those_of_peft(choice: dict[str, Any]) -> None:
    matcher = ModuleMatcher(AdapterConfig.from_fields({"peft_type": "LORA", **choice}))
    expected = {
        module: bool(check_target_module_exists(LoraConfig(**choice), module)) for module in MODULES
    }
    # PEFT's sign of an exclusion is an object, which is true.
    excluded = type(
        check_target_module_exists(LoraConfig(target_modules=["a"], exclude_modules=["b"]), "b")
    )
    for module in MODULES:
        if isinstance(check_target_module_exists(LoraConfig(**choice), module), excluded):
            expected[module] = False
    assert {module: matcher.targets(module) for module in MODULES} == expected


def test_all_linear_leaves_out_embedding_and_output_layer() -> None:
    for name in ("all-linear", "All-Linear"):
        config = AdapterConfig.from_fields({"peft_type": "LORA", "target_modules": name})
        matcher = ModuleMatcher(config)
        assert [m for m in MODULES if not matcher.targets(m)] == ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 2, r"layers\.1\..*": 3},
        {r"layers\.1\..*": 3, "q_proj": 2},
        {"_proj": 2, "^q_proj": 3},
        {r"^model.layers.\d+.mlp": 4, "mlp.*": 5, "lm_head": 6},
        {"model.layers.1.self_attn.q_proj": 7, "layers.1.self_attn.q_proj": 3},
    ],
    ids=str,
)
def test_the_first_matching_pattern_wins(pattern: dict[str, int]) -> None:
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 9}
    config = AdapterConfig.from_fields(
        {**fields, "rank_pattern": pattern, "alpha_pattern": pattern, "target_modules": "x"}
    )
    matcher = ModuleMatcher(config)
    for module in MODULES:
        key = get_pattern_key(pattern.keys(), module)
        rank = pattern.get(key, 8)
        assert matcher.rank_of(module) == rank
        assert matcher.scale_of(module) == pattern.get(key, 9) / rank


def test_saved_modules_are_ends_of_names_even_within_a_word() -> None:
    config = AdapterConfig.from_fields(
        {"peft_type": "LORA", "modules_to_save": ["norm", "embed_tokens"]}
    )
    matcher = ModuleMatcher(config)
    assert matcher.saves("model.layers.0.input_layernorm")
    assert matcher.saves("model.norm")
    assert matcher.saves("model.embed_tokens")
    assert not matcher.saves("lm_head")
