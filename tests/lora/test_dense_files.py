"""Dense parts that do not fit their configuration or the base: each refused by its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dense_files import (
    EMBED,
    HEAD,
    HIDDEN,
    NORM,
    PREFIX,
    VOCAB,
    Q,
    Tensors,
    base_tensors,
    embedding_pair,
    head_pair,
    load,
    pair,
    rows,
    shapes,
    table,
)

from branchline.lora.errors import AdapterError
from branchline.lora.loader import changed_modules

SAVED = {f"{EMBED}.weight": table()}
TOKENS = "trainable_token_indices"
BAD: dict[str, tuple[Tensors, dict[str, Any], str, str]] = {
    "a magnitude is missing": (
        pair(),
        {"use_dora": True},
        f"{Q}.lora_magnitude_vector",
        "missing",
    ),
    "a magnitude of another size": (
        pair() | {f"{Q}.lora_magnitude_vector": torch.ones(17)},
        {"use_dora": True},
        f"{Q}.lora_magnitude_vector",
        r"\[17\]; .* for \[16\]",
    ),
    "a magnitude that is NaN": (
        pair() | {f"{Q}.lora_magnitude_vector": torch.full((16,), torch.nan)},
        {"use_dora": True},
        f"{Q}.lora_magnitude_vector",
        "NaN",
    ),
    "a bias on B is missing": (pair(), {"lora_bias": True}, f"{Q}.lora_B.bias", "missing"),
    "a bias on B overflows": (
        pair() | {f"{Q}.lora_B.bias": torch.full((16,), 3e38)},
        {"lora_bias": True, "lora_alpha": 64},
        f"{Q}.bias",
        "infinity",
    ),
    "a bias under the name of untargeted modules": (
        pair() | {f"{Q}.bias": torch.ones(16)},
        {"bias": "all"},
        f"{Q}.bias",
        "not where PEFT reads",
    ),
    "a bias of a module that is not targeted": (
        pair() | {f"{Q.replace('q_proj', 'k_proj')}.bias": torch.ones(8)},
        {"bias": "lora_only"},
        f"{Q.replace('q_proj', 'k_proj')}.bias",
        "not where PEFT reads",
    ),
    "a bias that the base has not": (
        pair() | {f"{Q.replace('q_proj', 'k_proj')}.bias": torch.ones(8)},
        {"bias": "all"},
        "model.layers.0.self_attn.k_proj.bias",
        "base model does not have it",
    ),
    "a weight beside a pair": (
        pair() | {f"{Q}.base_layer.weight": torch.ones(16, 16)},
        {},
        "modules_to_save",
        "linear is not served: model.layers.0.self_attn.q_proj",
    ),
    "a saved linear": (
        pair() | {f"{Q.replace('q_proj', 'o_proj')}.weight": torch.ones(16, 16)},
        {"modules_to_save": ["o_proj"]},
        "modules_to_save",
        "takes in model.layers.0.self_attn.o_proj",
    ),
    "a saved block": (pair(), {"modules_to_save": ["mlp"]}, "modules_to_save", "takes in .*mlp;"),
    "a saved norm is missing": (
        pair(),
        {"modules_to_save": ["input_layernorm"]},
        NORM,
        "missing",
    ),
    "a norm that is not named": (pair() | {NORM: torch.ones(HIDDEN)}, {}, NORM, "does not name"),
    "a norm of another size": (
        pair() | {NORM: torch.ones(8)},
        {"modules_to_save": ["input_layernorm"]},
        NORM,
        r"\[8\]",
    ),
    "a saved classifier": (
        pair() | {f"{PREFIX}score.weight": torch.ones(2, HIDDEN)},
        {"modules_to_save": ["score"]},
        f"{PREFIX}score.weight",
        "base model has no score",
    ),
    "a table of another width": (
        pair() | {f"{EMBED}.weight": torch.ones(VOCAB, 8)},
        {"modules_to_save": ["embed_tokens"]},
        f"{EMBED}.weight",
        r"\[10, 8\]; .* for \[10, 16\]",
    ),
    "tables of two sizes": (
        pair() | {f"{EMBED}.weight": table(12)},
        {"modules_to_save": ["embed_tokens"]},
        f"{EMBED}.weight",
        "embedding has 12 tokens and the output layer 10; save both",
    ),
    "an empty table": (
        pair() | {f"{EMBED}.weight": table(0), f"{HEAD}.weight": table(0)},
        {},
        f"{EMBED}.weight",
        "has 0 tokens",
    ),
    "a table that is all too long": (
        pair() | {f"{EMBED}.weight": table(70_000), f"{HEAD}.weight": table(70_000)},
        {},
        f"{EMBED}.weight",
        "at most 65536 more",
    ),
    "a pair for another vocabulary": (
        embedding_pair(12),
        {"target_modules": ["embed_tokens"]},
        f"{EMBED}.lora_embedding_A",
        r"\[4, 12\]; .* for \[4, 10\]",
    ),
    "half an embedding pair": (
        {f"{EMBED}.lora_embedding_A": torch.ones(4, VOCAB)},
        {"target_modules": ["embed_tokens"]},
        f"{EMBED}.lora_embedding_B",
        "missing",
    ),
    "an embedding pair that is not targeted": (
        pair() | embedding_pair(),
        {},
        f"{EMBED}.lora_embedding_A",
        "leave it out",
    ),
    "a pair on a saved head": (
        head_pair() | {f"{HEAD}.weight": table()},
        {"target_modules": ["lm_head"], "modules_to_save": ["head"]},
        "target_modules",
        "names lm_head, as modules_to_save does",
    ),
    "a bias on an embedding pair": (
        embedding_pair(),
        {"target_modules": ["embed_tokens"], "lora_bias": True},
        "lora_bias",
        "can not go with LoRA on model.embed_tokens",
    ),
    "an activated pair on the head": (
        head_pair(),
        {
            "target_modules": ["lm_head"],
            "task_type": "CAUSAL_LM",
            "alora_invocation_tokens": [1],
        },
        "target_modules",
        "LoRA on lm_head is not served with an activated LoRA",
    ),
    "rows are missing": (pair(), {TOKENS: [1]}, next(iter(rows(1))), "missing"),
    "more rows than tokens": (pair() | rows(3), {TOKENS: [1]}, next(iter(rows(1))), r"\[3, 16\]"),
    "a row beyond the vocabulary": (
        pair() | rows(1),
        {TOKENS: [10]},
        TOKENS,
        "token 10 is not in the vocabulary of 10",
    ),
    "rows of another module": (
        pair() | rows(1),
        {TOKENS: {"q_proj": [1]}},
        TOKENS,
        "'q_proj' is not one of model.embed_tokens, lm_head",
    ),
    "rows of a saved table": (
        pair() | rows(1) | SAVED,
        {TOKENS: [1], "modules_to_save": ["embed_tokens"]},
        TOKENS,
        "names model.embed_tokens, as modules_to_save does",
    ),
    "rows that nothing asks for": (pair() | rows(1), {}, next(iter(rows(1))), "leave it out"),
    "two tables for one place": (
        pair() | SAVED | {f"{EMBED}.base_layer.weight": table()},
        {},
        f"{EMBED}.weight",
        "is for the same table as",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_refuses_by_name(kind: str, tmp_path: Path) -> None:
    tensors, fields, field, said = BAD[kind]
    with pytest.raises(AdapterError, match=said) as caught:
        load(tmp_path, tensors, **fields)
    assert caught.value.field.removeprefix(PREFIX) == field.removeprefix(PREFIX)
    assert "\n" not in str(caught.value)


TIED_TWINS: dict[str, tuple[Tensors, dict[str, Any]]] = {
    "saved": (
        pair() | {f"{EMBED}.weight": table(), f"{HEAD}.weight": table(seed=2)},
        {"modules_to_save": ["model.embed_tokens"], "ensure_weight_tying": True},
    ),
    "in the base": (pair() | {f"{EMBED}.weight": table(), f"{HEAD}.weight": table(seed=2)}, {}),
    "pairs": (
        embedding_pair() | {name: tensor * 2 for name, tensor in head_pair().items()},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}


@pytest.mark.parametrize("kind", TIED_TWINS)
def test_refuses_two_values_of_one_tied_parameter(kind: str, tmp_path: Path) -> None:
    tensors, fields = TIED_TWINS[kind]
    with pytest.raises(AdapterError, match="with which the base model's output layer is tied"):
        load(tmp_path, tensors, tied=True, **fields)


def test_refuses_other_rows_for_a_tied_head_that_is_to_be_tied(tmp_path: Path) -> None:
    tensors = pair() | rows(1) | rows(1, HEAD)
    tokens = {"embed_tokens": [1], "lm_head": [2]}
    fields: dict[str, Any] = {TOKENS: tokens, "ensure_weight_tying": True}
    with pytest.raises(AdapterError, match="other tokens for the tied output layer"):
        load(tmp_path, tensors, tied=True, **fields)
    load(tmp_path, tensors, tied=False, **fields)


def test_refuses_a_magnitude_for_a_weight_that_is_zero(tmp_path: Path) -> None:
    tensors = pair() | {f"{Q}.lora_magnitude_vector": torch.ones(16)}
    tensors[f"{Q}.lora_B.weight"] = torch.zeros(16, 4)
    base = base_tensors()
    base["model.layers.0.self_attn.q_proj.weight"][3] = 0
    with pytest.raises(AdapterError, match="zero in some direction") as caught:
        load(tmp_path, tensors, base=base, use_dora=True)
    assert caught.value.field == f"{Q}.lora_magnitude_vector"


def test_refuses_what_needs_a_base_without_one(tmp_path: Path) -> None:
    tensors = pair() | {f"{Q}.lora_magnitude_vector": torch.ones(16)}
    with pytest.raises(AdapterError, match="this adapter needs it"):
        load(tmp_path, tensors, base={}, use_dora=True)


def test_plain_pairs_need_no_base_and_have_nothing_dense(tmp_path: Path) -> None:
    weights = load(tmp_path, pair(), base={})
    assert weights.dense is None
    assert weights.vocab_size is None


def test_a_table_that_is_the_bases_takes_no_memory(tmp_path: Path) -> None:
    """PEFT writes it beside every pair on the embedding."""
    same = base_tensors()["model.embed_tokens.weight"]
    tensors = embedding_pair() | {f"{EMBED}.base_layer.weight": same}
    weights = load(tmp_path, tensors, target_modules=["embed_tokens"])
    assert weights.dense is not None
    assert set(weights.dense.tables) == {"embed_a", "embed_b"}
    tensors[f"{EMBED}.base_layer.weight"] = same + 1
    weights = load(tmp_path, tensors, target_modules=["embed_tokens"])
    assert weights.dense is not None
    assert torch.equal(weights.dense.tables["embed"], same + 1)


def test_what_is_untouched_has_scale_1_shift_0_and_the_bases_norms(tmp_path: Path) -> None:
    bias = torch.arange(16.0)
    tensors = pair() | {f"{Q}.base_layer.bias": bias, NORM: torch.full((HIDDEN,), 3.0)}
    weights = load(tmp_path, tensors, bias="all", modules_to_save=["input_layernorm"])
    dense, layout = weights.dense, shapes().vectors
    assert dense is not None
    assert dense.vectors is not None
    assert (dense.affine_groups, dense.norms) == ({"qkv"}, {"attention_norm"})
    expected = torch.zeros(layout.size)
    for group in shapes().groups:
        start, length = layout.scale(group, 0)
        expected[start : start + length] = 1
    start, _ = layout.shift("qkv", 0)
    served = base_tensors()["model.layers.0.self_attn.q_proj.bias"]
    expected[start : start + 16] = bias - served
    for name, value in (("attention_norm", 3.0), ("mlp_norm", 1.0), ("final_norm", 1.0)):
        start, length = layout.norm(name)
        expected[start : start + length] = value
    torch.testing.assert_close(dense.vectors, expected)


def test_changed_modules_are_named_once_without_their_place(tmp_path: Path) -> None:
    load(tmp_path, pair() | rows(1), **{TOKENS: [1]})
    assert changed_modules(tmp_path) == ("embed_tokens", "q_proj")
