"""Every architecture's logits equal transformers', however the tokens are fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from paged_run import (
    SCHEDULES,
    Chunks,
    all_at_once,
    assert_close,
    load,
    odd_chunks,
    paged_logits,
    random_prompts,
    reference,
    reference_logits,
    rewrite_config,
    to_old_layout,
)
from tiny_models import FAMILIES, make_tiny_model
from torch import Tensor

from branchline.engine.models.decoder import Decoder

TOLERANCE = 1e-4
# All over the windows (8) and over the lengths "trained" before rope scaling (32).
LENGTHS = (45, 34, 39)

Parity = Callable[[str], tuple[Decoder, list[list[int]], list[Tensor]]]


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    """A family's decoder, prompts and transformers' logits, made once."""

    @cache
    def make(family: str) -> tuple[Decoder, list[list[int]], list[Tensor]]:
        directory = tmp_path_factory.mktemp(family)
        make_tiny_model(directory, family, tokenizer=False)
        prompts = random_prompts(LENGTHS)
        return load(directory), prompts, reference_logits(reference(directory), prompts)

    return make


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(
    family: str, schedule: Callable[[Sequence[int]], Chunks], parity: Parity
) -> None:
    decoder, prompts, expected = parity(family)
    assert_close(paged_logits(decoder, prompts, schedule(LENGTHS)), expected, TOLERANCE)


@pytest.mark.parametrize("family", ["gemma3", "llama31", "phi3", "qwen2", "smollm3"])
def test_the_older_config_layout_means_the_same(family: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, family, tokenizer=False)
    rewrite_config(tmp_path, to_old_layout)
    check(tmp_path)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1, "head_dim": 8}),
    "llama-coarse-eps": ("llama", {"rms_norm_eps": 0.1}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2-window-from-layer-2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen2-window-off": (
        "qwen2",
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3-biases-and-windows": (
        "qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "gemma2-no-caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma2-biases": ("gemma2", {"attention_bias": True}),
    "gemma3-logit-cap": ("gemma3", {"final_logit_softcapping": 5.0}),
    "phi3-window": ("phi3", {"sliding_window": 7}),
    "phi3-tied-no-scaling": (
        "phi3",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 250_000.0}},
    ),
    "smollm3-windows": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": None},
    ),
    "smollm3-biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_variants_equal_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    make_tiny_model(tmp_path, family, tokenizer=False, **overrides)
    check(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(family: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, family, dtype=torch.bfloat16, tokenizer=False)
    prompts = random_prompts(LENGTHS)
    exact = torch.cat(reference_logits(reference(tmp_path), prompts))
    theirs = torch.cat(reference_logits(reference(tmp_path, torch.bfloat16), prompts))
    decoder = load(tmp_path, torch.bfloat16)
    assert decoder.dtype == torch.bfloat16
    ours = torch.cat(paged_logits(decoder, prompts, all_at_once(LENGTHS)))
    assert (ours - exact).square().mean() < 1.3 * (theirs - exact).square().mean()


def test_gemmas_embedding_scale_is_rounded_as_in_transformers(tmp_path: Path) -> None:
    # sqrt(72) = 8.485 is 8.5 in bfloat16
    make_tiny_model(tmp_path, "gemma2", hidden_size=72, tokenizer=False)
    ids = torch.arange(260)
    with torch.inference_mode():
        expected = reference(tmp_path, torch.bfloat16).model.embed_tokens(ids)
        assert torch.equal(load(tmp_path, torch.bfloat16).embed(ids), expected)


def check(directory: Path) -> None:
    """The checkpoint's logits equal transformers', fed whole and in odd chunks."""
    prompts = random_prompts(LENGTHS)
    expected = reference_logits(reference(directory), prompts)
    decoder = load(directory)
    for schedule in (all_at_once, odd_chunks):
        assert_close(paged_logits(decoder, prompts, schedule(LENGTHS)), expected, TOLERANCE)
