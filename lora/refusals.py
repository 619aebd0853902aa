"""Which fields of PEFT's LoRA configuration are served, which change nothing, which are refused."""

from __future__ import annotations

from typing import Any

from .errors import AdapterError

_READ = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)

# Records of training, of initialisation (its methods are judged by init_lora_weights), or
# settings of a feature that is refused by its own field.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
        "velora_config",
    }
)

_NOT_SERVED = {
    "arrow_config": "Arrow routing is not served; allowed: null",
    "fan_in_fan_out": "weights stored as (in, out) are not served; allowed: false",
    "kasa_config": "KaSA is not served; allowed: null",
    "layer_replication": "replicated layers are not served; allowed: null",
    "megatron_config": "Megatron layers are not served; allowed: null",
    "monteclora_config": "MonteCLoRA is not served; allowed: null",
    "target_parameters": "LoRA on bare parameters is not served; allowed: null",
    "use_bdlora": "block-diagonal LoRA is not served; allowed: null",
    "use_qalora": "QALoRA is not served; allowed: false",
}

_PLAIN_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGING_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def refuse_unserved(fields: dict[str, Any]) -> None:
    """Raise AdapterError for the first field that asks for what is not served."""
    peft_type = fields.get("peft_type")
    if peft_type != "LORA":
        raise AdapterError("peft_type", f'only "LORA" is served, not {peft_type!r}')
    for field, reason in _NOT_SERVED.items():
        if not _is_default(fields.get(field)):
            raise AdapterError(field, reason)
    _refuse_initialisation(fields.get("init_lora_weights", True))
    if fields.get("use_dora"):
        _refuse_beside_dora(fields)
    if fields.get("alora_invocation_tokens"):
        _refuse_beside_activation(fields)
    for field in sorted(fields.keys() - _READ - _WITHOUT_EFFECT - _NOT_SERVED.keys()):
        if not _is_default(fields[field]):
            raise AdapterError(
                field, "an unknown field, which may change the output; allowed: null"
            )


def _is_default(value: object) -> bool:
    """Switched off in any of the ways PEFT writes it; 0 is a value, not an absence."""
    return value is None or value is False or value in ("", [], {})


def _refuse_initialisation(method: object) -> None:
    if method is None or isinstance(method, bool):
        return
    name = method.lower() if isinstance(method, str) else repr(method)
    if name.startswith(_BASE_CHANGING_INITIALISATIONS):
        raise AdapterError(
            "init_lora_weights",
            f"{name!r} changes the base weights, so this adapter fits another base; convert it "
            "to plain LoRA with PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...)",
        )
    if name not in _PLAIN_INITIALISATIONS:
        allowed = ", ".join(_PLAIN_INITIALISATIONS)
        raise AdapterError("init_lora_weights", f"{name!r} is unknown; allowed: bool, {allowed}")


def _refuse_beside_dora(fields: dict[str, Any]) -> None:
    """Refuse what PEFT does not let DoRA go with."""
    if fields.get("lora_bias"):
        raise AdapterError("lora_bias", "can not go with DoRA; allowed: false")
    _refuse_second_variant(fields, "DoRA")


def _refuse_beside_activation(fields: dict[str, Any]) -> None:
    """Refuse what PEFT does not let an activated LoRA be as well, though it serves it elsewhere.

    Only its class for causal language models activates anything: any other would answer as the
    base. A bias on lora_B would have to wait for the invocation, as nothing else that is dense.
    """
    if fields.get("use_dora"):
        raise AdapterError("use_dora", "DoRA can not go with an activated LoRA; allowed: false")
    if fields.get("lora_bias"):
        raise AdapterError("lora_bias", "is not served with an activated LoRA; allowed: false")
    _refuse_second_variant(fields, "an activated LoRA")
    if fields.get("task_type") != "CAUSAL_LM":
        raise AdapterError(
            "task_type",
            f'an activated LoRA is for "CAUSAL_LM", not {fields.get("task_type")!r}',
        )


def _refuse_second_variant(fields: dict[str, Any], first: str) -> None:
    """Of two variants in one adapter PEFT raises "unsupported variant combination"."""
    if fields.get("velora_config") is not None:
        raise AdapterError("velora_config", f"can not go with {first}; allowed: null")
    if fields.get("init_lora_weights") == "mica":
        raise AdapterError("init_lora_weights", f"'mica' can not go with {first}")
