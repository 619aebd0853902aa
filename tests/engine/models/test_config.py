"""config.json as published, in both layouts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paged_run import rewrite_config, to_old_layout
from tiny_models import EOS_TOKEN_ID, FAMILIES, make_tiny_model
from transformers import AutoConfig

from branchline.engine.errors import EngineError
from branchline.engine.models.config import ModelConfig, UnsupportedModelError

# The facts of published config.json files that the decoder depends on, as they were written.
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}
GEMMA_2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "vocab_size": 256000,
}
QWEN_2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
SMOLLM3_3B = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "attention_bias": False,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 128256,
}
# What config.json must always say; transformers fills in the rest.
SPARSE = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "max_position_embeddings": 4096,
    "num_attention_heads": 8,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "torch_dtype": "float16",
    "vocab_size": 1000,
}
PUBLISHED = {
    "sparse-llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SPARSE},
    "sparse-mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **SPARSE},
    "sparse-qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SPARSE},
    "sparse-qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SPARSE},
    "sparse-gemma2": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **SPARSE},
    "sparse-gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **SPARSE,
    },
    "sparse-phi3": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **SPARSE},
    "sparse-smollm3": {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", **SPARSE},
    "qwen-2.5-windows": QWEN_2_5_7B | {"use_sliding_window": True, "max_window_layers": 14},
    "gemma-3-1b": GEMMA_3_1B,
    "gemma-2-2b": GEMMA_2_2B,
    "qwen-2.5-7b": QWEN_2_5_7B,
    "llama-3.2-1b": LLAMA_3_2_1B,
    "mistral-7b": MISTRAL_7B,
    "smollm3-3b": SMOLLM3_3B,
}


def write(directory: Path, values: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_what_transformers_reads(name: str, tmp_path: Path) -> None:
    write(tmp_path, PUBLISHED[name])
    ours, theirs = ModelConfig.from_directory(tmp_path), AutoConfig.from_pretrained(tmp_path)
    scalar = getattr(theirs, "query_pre_attn_scalar", ours.head_dim)
    assert ours.attention_scale == scalar**-0.5
    assert ours.attention_soft_cap == getattr(theirs, "attn_logit_softcapping", None)
    assert ours.logit_soft_cap == getattr(theirs, "final_logit_softcapping", None)
    assert ours.head_dim == getattr(theirs, "head_dim", ours.hidden_size // ours.num_heads)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.dtype == str(theirs.dtype).removeprefix("torch.")
    layer_types = getattr(theirs, "layer_types", None)
    if layer_types is None:
        layer_types = ["sliding_attention"] * ours.num_layers
    window = getattr(theirs, "sliding_window", None)
    windows = [window if t == "sliding_attention" else None for t in layer_types]
    assert [layer.sliding_window for layer in ours.layers] == windows
    rope = theirs.rope_parameters
    ropes = [rope["full_attention"], rope["sliding_attention"]] if len(ours.ropes) == 2 else [rope]
    assert [rope.theta for rope in ours.ropes] == [rope["rope_theta"] for rope in ropes]
    turned = getattr(theirs, "no_rope_layers", [1] * ours.num_layers)
    assert [layer.rope is not None for layer in ours.layers] == [bool(t) for t in turned]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_give_the_same_facts(family: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, family, tokenizer=False)
    new = ModelConfig.from_directory(tmp_path)
    rewrite_config(tmp_path, to_old_layout)
    assert ModelConfig.from_directory(tmp_path) == new
    assert new.dtype == "float32"
    assert new.eos_token_ids == (EOS_TOKEN_ID,)


def test_end_tokens_of_both_files_count(tmp_path: Path) -> None:
    write(tmp_path, LLAMA_3_2_1B | {"eos_token_id": 7})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 7, 8]}')
    assert ModelConfig.from_directory(tmp_path).eos_token_ids == (7, 9, 8)


def test_gemma_layers_alternate_and_use_their_own_rope(tmp_path: Path) -> None:
    layers = ModelConfig.from_directory(write(tmp_path, GEMMA_3_1B)).layers
    assert [(layer.sliding_window, layer.rope) for layer in layers[:7]] == [
        *[(512, 1)] * 5,
        (None, 0),
        (512, 1),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM.*LlamaForCausalLM"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "of Gemma 3 the text models"),
        ({"architectures": None}, "architectures is null"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq.*absent"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"hidden_act": "relu"}, "hidden_act.*relu.*one of silu"),
        ({"hidden_size": None}, "hidden_size is null.*positive integer"),
        ({"num_hidden_layers": "16"}, 'num_hidden_layers is "16"'),
        ({"num_attention_heads": True}, "num_attention_heads is true"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5.*divisor of 32"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings.*true or false"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype.*float8.*float32, bfloat16, float16"),
        ({"eos_token_id": "</s>"}, "eos_token_id.*token id"),
        ({"rope_scaling": {"rope_type": "xpos"}}, "rope_scaling: rope_type.*xpos.*llama3, yarn"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 8}, "layer_types.*the same"),
    ],
)
def test_llama_fields_we_cannot_honour(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(tmp_path, LLAMA_3_2_1B | changes, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GEMMA_2_2B | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA_3_1B | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (GEMMA_3_1B | {"layer_types": ["chunked_attention"] * 26}, "layer_types.*full_attention"),
        (GEMMA_3_1B | {"layer_types": ["full_attention"]}, "layer_types.*26 entries"),
        (GEMMA_3_1B | {"sliding_window": None}, "sliding_window is off"),
        (QWEN_2_5_7B | {"layer_types": ["sliding_attention"] * 28}, "sliding_window is off"),
        (QWEN_2_5_7B | {"use_mrope": True}, "use_mrope"),
        (SMOLLM3_3B | {"no_rope_layers": [2] * 36}, "no_rope_layers.*0 and 1"),
        (MISTRAL_7B | {"sliding_window": -1}, "sliding_window is -1"),
    ],
)
def test_other_fields_we_cannot_honour(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(tmp_path, values, message)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_files_that_are_no_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        ModelConfig.from_directory(tmp_path)


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json: can't be read"):
        ModelConfig.from_directory(tmp_path)


def refused(directory: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        ModelConfig.from_directory(write(directory, values))
    assert "\n" not in str(caught.value)
