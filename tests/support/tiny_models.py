"""Tiny random checkpoints of every supported architecture, and a byte-level tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
EOS_TOKEN_ID = 256 + SPECIAL_TOKENS.index(IM_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# What each family adds to `_COMMON`; windows and caps are small so that short prompts meet them.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 4},
    "llama3": {"model_type": "llama", "rope_parameters": {"rope_theta": 500_000.0}},
    "llama31": {"model_type": "llama", "rope_parameters": _LLAMA3_ROPE},
    "llama32": {
        "model_type": "llama",
        "rope_parameters": _LLAMA3_ROPE,
        "head_dim": 24,
        "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_theta": 1_000_000.0}},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 32,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 32,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
        },
        "tie_word_embeddings": True,
    },
    "phi3": {
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 32,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0],
        },
    },
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    "smollm3": {
        "model_type": "smollm3",
        "num_key_value_heads": 1,
        "no_rope_layers": [1, 1, 0, 1],
        "tie_word_embeddings": True,
    },
}

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 259,
}

FAMILIES = tuple(_FAMILIES)


def make_tiny_model(
    directory: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | None = None,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write a random model of ``family`` (one of `FAMILIES`) with its tokenizer.

    ``overrides`` are config fields (``tie_word_embeddings=False``). ``max_shard_size``
    ("100KB") splits the weights into shards with an index. Returns ``directory``.
    """
    fields = {**_COMMON, **_FAMILIES[family], **overrides}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        _randomize(model)
    model = model.to(dtype)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(directory, max_shard_size=max_shard_size or "1GB")
    if tokenizer:
        make_tiny_tokenizer(directory, config.vocab_size)
    return directory


def make_tiny_tokenizer(directory: Path, vocab_size: int = VOCAB_SIZE) -> Path:
    """Write a byte-level tokenizer with a ChatML template: token id = byte value.

    The special tokens follow at 256. A larger ``vocab_size`` leaves padding ids without a
    token, as real checkpoints have.
    """
    if vocab_size < VOCAB_SIZE:
        raise ValueError(f"vocab_size must be at least {VOCAB_SIZE}")
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    vocabulary |= {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)
    return directory


def _randomize(model: PreTrainedModel) -> None:
    """Give every tensor values that matter: logits spread by about 3, no zero biases.

    Gemma multiplies embeddings by sqrt(hidden) and norms what attention averaged: small
    embeddings, a large final norm and a weak norm after attention keep it from repeating
    one token for ever.
    """
    gemma = model.config.model_type.startswith("gemma")
    embedding_scale = 0.4 if gemma else 3.0
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape)
        if name == "model.norm.weight" and gemma:
            values = values * 0.2 + 6.5
        elif name.endswith("post_attention_layernorm.weight") and gemma:
            values = values * 0.2 - 0.7
        elif name.endswith("norm.weight"):
            values = values * 0.2 + (0.0 if gemma else 1.0)
        elif name.endswith("bias"):
            values = values * 0.3
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            values = values * (embedding_scale / math.sqrt(parameter.shape[1]))
        else:
            values = values * (1.4 / math.sqrt(parameter.shape[1]))
        parameter.data.copy_(values)


def _byte_characters() -> list[str]:
    """The printable stand-in for each byte in GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]
