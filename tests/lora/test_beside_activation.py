"""What an activated LoRA can not be as well: refused by name, as PEFT refuses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from branchline.lora.adapter import AdapterConfig
from branchline.lora.errors import AdapterError

ACTIVATED: dict[str, Any] = {
    "peft_type": "LORA",
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
    "alora_invocation_tokens": [1, 2],
}

REFUSED_BESIDE_ACTIVATION: list[tuple[str, Any, str]] = [
    ("velora_config", {"num_groups": 2}, "activated LoRA"),
    ("velora_config", {}, "activated LoRA"),
    ("init_lora_weights", "mica", "activated LoRA"),
    ("task_type", None, "CAUSAL_LM"),
    ("task_type", "SEQ_CLS", "CAUSAL_LM"),
    ("use_dora", True, "DoRA"),
    ("use_bdlora", {"nblocks": 2}, "null"),
    ("arrow_config", {"top_k": 3}, "null"),
    ("kasa_config", {"beta": 0.1}, "null"),
    ("monteclora_config", {"num_samples": 8}, "null"),
    ("lora_bias", True, "activated LoRA"),
]


@pytest.mark.parametrize(("field", "value", "said"), REFUSED_BESIDE_ACTIVATION)
def test_refuses_beside_activation(field: str, value: Any, said: str) -> None:
    with pytest.raises(AdapterError) as caught:
        AdapterConfig.from_fields({**ACTIVATED, field: value})
    assert caught.value.field == field
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [("modules_to_save", ["embed_tokens"]), ("bias", "all"), ("trainable_token_indices", [3])],
)
def test_what_peft_puts_into_the_base_can_go_with_activation(field: str, value: Any) -> None:
    config = AdapterConfig.from_fields({**ACTIVATED, field: value})
    assert config.invocation_tokens == (1, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lora_bias", True), ("velora_config", {"num_groups": 2}), ("init_lora_weights", "mica")],
)
def test_dora_goes_alone_too(field: str, value: Any) -> None:
    fields = {"peft_type": "LORA", "target_modules": ["q_proj"], "use_dora": True, field: value}
    with pytest.raises(AdapterError, match="DoRA") as caught:
        AdapterConfig.from_fields(fields)
    assert caught.value.field == field
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(64, 64)})
    with pytest.raises(ValueError, match=r"variant|DoRA"):
        inject_adapter_in_model(LoraConfig(**fields), model)


@pytest.mark.parametrize(
    "other",
    [
        {"use_dora": True},
        {"init_lora_weights": "mica"},
        {"velora_config": {}},
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": [], "target_modules_bd_b": []}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_peft_does_not_combine_them_either(other: dict[str, Any]) -> None:
    config = LoraConfig(
        target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[1], **other
    )
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(64, 64)})
    with pytest.raises(ValueError, match="unsupported variant combination"):
        inject_adapter_in_model(config, model)


def test_peft_takes_an_empty_invocation_for_plain_lora() -> None:
    for invocation, is_variant in (([], False), ([1], True)):
        config = LoraConfig(
            target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=invocation
        )
        model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(64, 64)})
        inject_adapter_in_model(config, model)
        assert bool(model["q_proj"].lora_variant) is is_variant
        fields = {**ACTIVATED, "alora_invocation_tokens": invocation}
        parsed = AdapterConfig.from_fields(fields).invocation_tokens
        assert parsed == ((1,) if is_variant else None)
