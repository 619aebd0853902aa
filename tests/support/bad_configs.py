"""Adapters whose configuration or text must be refused, each with the answer it has to get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bad_puts import (
    CONFIG,
    LAYER,
    Q_A,
    Q_B,
    V_A,
    WEIGHTS,
    BadPut,
    Put,
    Workshop,
    config_of,
    config_with,
    directory_with,
    edit_config,
    without,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer


def _nothing_matches(directory: Path) -> None:
    edit_config(directory, target_modules=["query_key_value"])
    save_file({}, directory / WEIGHTS)


def _explode(directory: Path) -> None:
    """There are millions of ways to cut a module's name in nine, and none of them fits."""
    edit_config(directory, target_modules=r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\9\8_")


def _enlarge(directory: Path) -> None:
    """Finite in the file, but not once the scale is in."""
    edit_config(directory, lora_alpha=1e6)
    tensors = load_file(directory / WEIGHTS)
    tensors[Q_B] = tensors[Q_B] * 0 + 3e38
    save_file(tensors, directory / WEIGHTS)


def _more_tokens(workshop: Workshop) -> Put:
    """A tokenizer that adds a token, and weights that don't."""
    tokenizer = AutoTokenizer.from_pretrained(workshop.model)
    tokenizer.add_tokens(["<|more|>"], special_tokens=True)
    directory = workshop.copy()
    tokenizer.save_pretrained(directory)
    return Put(str(directory))


def _text_file(name: str, content: str) -> Callable[[Workshop], Put]:
    return directory_with(lambda directory: (directory / name).write_text(content))


_DEEP = b'{"peft_type": "LORA", "r": 4, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
_TWO_MIB = b'{"peft_type": "LORA", "r": 4, "x": "' + b"x" * (2 << 20) + b'"}'
_ENDLESS_TEMPLATE = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
)

BAD_CONFIGS: dict[str, BadPut] = {
    "no config": BadPut(without(CONFIG), CONFIG, "missing"),
    "a config that is not JSON": BadPut(config_of(b"peft_type: LORA"), CONFIG, "not JSON"),
    "a config that is a list": BadPut(config_of(b'["LORA"]'), CONFIG, "one JSON object"),
    "a config of 2 MiB": BadPut(config_of(_TWO_MIB), CONFIG, "at most 1048576"),
    "a deeply nested config": BadPut(config_of(_DEEP), CONFIG, "not JSON"),
    "a field twice": BadPut(
        config_of(b'{"peft_type": "LORA", "r": 4, "r": 8}'), CONFIG, "'r' is there twice"
    ),
    "IA3": BadPut(config_with(peft_type="IA3"), "peft_type", "'IA3'"),
    "no peft_type": BadPut(config_with(peft_type=None), "peft_type", "LORA"),
    "rank 0": BadPut(config_with(r=0), "r", "from 1 to 512, not 0"),
    "rank 513": BadPut(config_with(r=513), "r", "from 1 to 512, not 513"),
    "a negative rank": BadPut(config_with(r=-4), "r", "not -4"),
    "a rank in words": BadPut(config_with(r="4"), "r", "not '4'"),
    "no rank": BadPut(config_with(r=None), "r", "not None"),
    "another rank than the tensors": BadPut(config_with(r=8), Q_A, "[4, 64]"),
    "a rank pattern of 0": BadPut(
        config_with(rank_pattern={"q_proj": 0}), "rank_pattern['q_proj']", "not 0"
    ),
    "an alpha in words": BadPut(config_with(lora_alpha="high"), "lora_alpha", "'high'"),
    "PiSSA": BadPut(
        config_with(init_lora_weights="pissa"),
        "init_lora_weights",
        "path_initial_model_for_weight_conversion",
    ),
    "OLoRA": BadPut(config_with(init_lora_weights="olora"), "init_lora_weights", "'olora'"),
    "an unknown field": BadPut(config_with(use_magic=True), "use_magic", "unknown field"),
    "KaSA": BadPut(config_with(kasa_config={"rank": 4}), "kasa_config", "not served"),
    "transposed weights": BadPut(config_with(fan_in_fan_out=True), "fan_in_fan_out", "not served"),
    "a saved linear": BadPut(
        config_with(modules_to_save=["down_proj"]), "modules_to_save", "down_proj"
    ),
    "DoRA without magnitudes": BadPut(
        config_with(use_dora=True), f"{LAYER}.q_proj.lora_magnitude_vector", "missing"
    ),
    "no targets": BadPut(config_with(target_modules=[]), Q_A, "leave this module out"),
    "a module that is left out": BadPut(
        config_with(target_modules=["q_proj"]), V_A, "leave this module out"
    ),
    "a layer that is left out": BadPut(
        config_with(layers_to_transform=[1, 2, 3]), Q_A, "leave this module out"
    ),
    "targets of nothing": BadPut(
        directory_with(_nothing_matches), "target_modules", "matches no module"
    ),
    "an expression that is none": BadPut(
        config_with(target_modules="(q_proj"), "target_modules", "not a regular expression"
    ),
    "nested repeats": BadPut(
        config_with(target_modules=r"((a+)+)+$"), Q_A, "leave this module out"
    ),
    "an expression that grows": BadPut(
        config_with(target_modules="((((a{99}){99}){99}){99}){99}"),
        "target_modules",
        "repeats too much",
    ),
    "a token row out of range": BadPut(
        config_with(trainable_token_indices=[5, 999]),
        "trainable_token_indices",
        "token 999 is not in the vocabulary of 260",
    ),
    "an invocation out of range": BadPut(
        config_with(alora_invocation_tokens=[5, 999]),
        "alora_invocation_tokens",
        "token 999 is not in the base model's vocabulary",
    ),
    "values too large": BadPut(directory_with(_enlarge), Q_B, "infinity"),
    "a tokenizer with more tokens": BadPut(_more_tokens, "tokenizer.json", "up to 260"),
    "a tokenizer cut off": BadPut(_text_file("tokenizer.json", "{"), "tokenizer.json", "no JSON"),
    "a tokenizer of another kind": BadPut(
        _text_file("tokenizer.json", '{"model": {"type": "Magic"}}'),
        "tokenizer.json",
        "makes no tokenizer",
    ),
    "a template that does not compile": BadPut(
        _text_file("chat_template.jinja", "{% for message %}"), "chat_template.jinja", "template"
    ),
    "a template without end": BadPut(
        _text_file("chat_template.jinja", _ENDLESS_TEMPLATE), "chat_template.jinja", "took longer"
    ),
}

EXPLOSION = BadPut(directory_with(_explode), "target_modules", "take more than 5 s")
"""An expression that keeps whoever checks it busy for seconds."""
