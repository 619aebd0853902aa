"""Rotary tables equal transformers' at real sizes; what can't be exact is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from paged_run import (
    all_at_once,
    assert_close,
    load,
    odd_chunks,
    one_by_one,
    paged_logits,
    random_prompts,
    reference,
    reference_logits,
    rewrite_config,
)
from tiny_models import make_tiny_model
from transformers import AutoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from branchline.engine.models.config import UnsupportedModelError
from branchline.engine.models.fields import Fields
from branchline.engine.models.rope import rope_table
from branchline.engine.models.rope_config import read_global_and_local_rope, read_rope

CPU = torch.device("cpu")
LENGTH = 20_000
HEAD_DIM = 64
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0}

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3.1": {
        **LLAMA3,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {**YARN, "original_max_position_embeddings": 4096},
    "yarn-betas": {
        **YARN,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 1.25,
    },
    "yarn-mscale": {
        **YARN,
        "original_max_position_embeddings": 4096,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
        "long_factor": [1.0 + 0.9 * i for i in range(HEAD_DIM // 2)],
    },
    "longrope-factor": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0] * (HEAD_DIM // 2),
        "long_factor": [2.0] * (HEAD_DIM // 2),
    },
}


def values_with(rope: dict[str, Any]) -> dict[str, Any]:
    return {"max_position_embeddings": 16384, "rope_parameters": dict(rope)}


@pytest.mark.parametrize("name", ROPES)
def test_tables_equal_transformers(name: str) -> None:
    values = values_with(ROPES[name])
    config = AutoConfig.for_model(
        "llama", hidden_size=HEAD_DIM, num_attention_heads=1, **values_with(ROPES[name])
    )
    rope = read_rope(Fields(values, "config.json"), HEAD_DIM, 10_000.0, partial=False)
    table = rope_table(rope, LENGTH, torch.float32, CPU)
    positions = torch.arange(LENGTH)[None]
    expected = torch.cat(LlamaRotaryEmbedding(config)(torch.ones(1), positions))
    # Angles reach 20,000: one float32 rounding of a frequency is 1e-3 radians there.
    torch.testing.assert_close(table, expected, atol=4e-3, rtol=0)
    torch.testing.assert_close(table[:, :500], expected[:, :500], atol=1e-4, rtol=0)


def test_phi3_rotates_a_part_of_each_head() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    config = AutoConfig.for_model(
        "phi3", hidden_size=HEAD_DIM, num_attention_heads=1, rope_parameters=dict(rope)
    )
    ours = read_rope(Fields(values_with(rope), "config.json"), HEAD_DIM, 1e4, partial=True)
    expected = torch.cat(Phi3RotaryEmbedding(config)(torch.ones(1), torch.arange(100)[None]))
    assert ours.rotary_dim == 48
    torch.testing.assert_close(rope_table(ours, 100, torch.float32, CPU), expected)


def test_gemma3_has_a_global_and_a_local_rope() -> None:
    values = {
        "max_position_embeddings": 32768,
        "rope_theta": 1_000_000,
        "rope_local_base_freq": 10_000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = AutoConfig.for_model(
        "gemma3_text", head_dim=HEAD_DIM, sliding_window_pattern=2, num_hidden_layers=2, **values
    )
    theirs = Gemma3RotaryEmbedding(config)
    ours = read_global_and_local_rope(Fields(values, "config.json"), HEAD_DIM)
    for rope, layer_type in zip(ours, ("full_attention", "sliding_attention"), strict=True):
        expected = torch.cat(theirs(torch.ones(1), torch.arange(300)[None], layer_type))
        table = rope_table(rope, 300, torch.float32, CPU)
        torch.testing.assert_close(table, expected, atol=1e-4, rtol=0)


def test_tables_come_in_the_models_dtype() -> None:
    rope = read_rope(Fields(values_with({}), "config.json"), HEAD_DIM, 1e4, partial=False)
    wide = rope_table(rope, 1000, torch.float32, CPU)
    torch.testing.assert_close(
        rope_table(rope, 1000, torch.bfloat16, CPU), wide.bfloat16(), atol=0, rtol=0
    )


def test_dynamic_scaling_is_exact_up_to_the_models_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    make_tiny_model(
        tmp_path, "llama", tokenizer=False, rope_parameters=rope, max_position_embeddings=48
    )
    prompts = random_prompts([48, 20])
    expected = reference_logits(reference(tmp_path), prompts)
    assert_close(paged_logits(load(tmp_path), prompts, odd_chunks([48, 20])), expected, 1e-4)
    with pytest.raises(UnsupportedModelError, match=r"max_model_len 49 .* 48.*rope_type dynamic"):
        load(tmp_path, max_model_len=49)


@pytest.mark.parametrize("name", ["yarn-betas", "linear"])
def test_scaled_models_equal_transformers(name: str, tmp_path: Path) -> None:
    rope = dict(ROPES[name])
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = 16
    make_tiny_model(tmp_path, "qwen2", tokenizer=False, rope_parameters=rope)
    prompts = random_prompts([40, 33])
    expected = reference_logits(reference(tmp_path), prompts)
    assert_close(paged_logits(load(tmp_path), prompts, odd_chunks([40, 33])), expected, 1e-4)


def test_phi3_takes_short_factors_when_no_sequence_can_grow_long(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "phi3", tokenizer=False)
    lengths = [32, 7]
    prompts = random_prompts(lengths)
    expected = reference_logits(reference(tmp_path), prompts)
    decoder = load(tmp_path, max_model_len=32)
    assert_close(paged_logits(decoder, prompts, one_by_one(lengths)), expected, 1e-4)


def test_phi3_takes_long_factors_for_all_when_sequences_may_grow_long(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "phi3", tokenizer=False)
    decoder = load(tmp_path, max_model_len=33)
    lengths = [33, 7]
    prompts = random_prompts(lengths)
    short_rule = reference_logits(reference(tmp_path), prompts)

    def long_always(values: dict[str, Any]) -> None:
        rope = values["rope_parameters"]
        rope["short_factor"] = rope["long_factor"]

    rewrite_config(tmp_path, long_always)
    expected = reference_logits(reference(tmp_path), prompts)
    ours = paged_logits(decoder, prompts, all_at_once(lengths))
    assert_close(ours, expected, 1e-4)
    assert_close(ours[:1], short_rule[:1], 1e-4)
    # The one place where we differ from transformers: a short sequence on a long server.
    assert (ours[1] - short_rule[1]).abs().max() > 0.01


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"rope_type": "proportional"}, "rope_type.*proportional.*default, linear"),
    "no factor": ({"rope_type": "linear"}, "factor is absent"),
    "negative factor": ({"rope_type": "linear", "factor": -1}, "factor is -1"),
    "wrong type": ({"rope_theta": "big"}, "rope_theta.*big.*number"),
    "mrope": ({"mrope_section": [16, 24, 24]}, "mrope_section"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "nested": ({"full_attention": {"rope_theta": 5.0}}, "full_attention"),
    "short list": (
        {**ROPES["longrope"], "long_factor": [1.0]},
        "long_factor.*list of 32 numbers",
    ),
    "crossed": (
        {**ROPES["llama3.1"], "high_freq_factor": 1.0},
        "high_freq_factor is 1.0; must be over",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_ropes_are_refused_by_name(case: str) -> None:
    rope, message = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        read_rope(Fields(values_with(rope), "config.json"), HEAD_DIM, 1e4, partial=False)
    assert "\n" not in str(caught.value)


def test_gemma3_needs_both_ropes() -> None:
    fields = Fields(values_with({"rope_type": "default"}), "config.json")
    with pytest.raises(UnsupportedModelError, match="full_attention and sliding_attention"):
        read_global_and_local_rope(fields, HEAD_DIM)
