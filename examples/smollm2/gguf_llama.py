"""A Llama GGUF as what a model directory holds: tensors, config, tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_CONTROL_TOKEN: Final = 3
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True, slots=True)
class GgufLlama:
    """An open GGUF file whose architecture is llama."""

    reader: gguf.GGUFReader

    @classmethod
    def open(cls, path: Path) -> "GgufLlama":
        """Map the file; raises ValueError for another architecture."""
        opened = cls(gguf.GGUFReader(path))
        if (architecture := opened.field("general.architecture")) != "llama":
            raise ValueError(f"{path.name} is a {architecture!r} GGUF, not a 'llama' one")
        return opened

    def field(self, name: str) -> Any:
        """The value of a metadata field; raises KeyError if the file has none of that name."""
        return self.reader.fields[name].contents()

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight under its transformers name, dequantised."""
        num_heads = {
            "attn_q": self.field("llama.attention.head_count"),
            "attn_k": self.field("llama.attention.head_count_kv"),
        }
        for tensor in self.reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            part = tensor.name.split(".")[-2]
            if part in num_heads:
                values = unpermute_rope(values, num_heads[part])
            yield hub_name(tensor.name), torch.tensor(values).to(dtype)

    def config(self) -> dict[str, Any]:
        """The `config.json` of the model."""
        names = {tensor.name for tensor in self.reader.tensors}
        num_heads = self.field("llama.attention.head_count")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.field("llama.embedding_length"),
            "intermediate_size": self.field("llama.feed_forward_length"),
            "num_hidden_layers": self.field("llama.block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self.field("llama.attention.head_count_kv"),
            "head_dim": self.field("llama.embedding_length") // num_heads,
            "max_position_embeddings": self.field("llama.context_length"),
            # Stored as float32: 9.999999747378752e-06 is 1e-5.
            "rms_norm_eps": float(f"{self.field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": self.field("llama.rope.freq_base"),
            "vocab_size": self.field("llama.vocab_size"),
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": False,
            "mlp_bias": False,
            **self._token_ids(),
        }

    def generation_config(self) -> dict[str, Any]:
        """The `generation_config.json`: the end of a message and the end of a text stop."""
        ids = self._token_ids()
        return {**ids, "eos_token_id": [ids["eos_token_id"], self._tokens().index("<|endoftext|>")]}

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE with single digits (`tokenizer.ggml.pre` is `smollm`)."""
        if (pre := self.field("tokenizer.ggml.pre")) != "smollm":
            raise ValueError(f"pre-tokenizer {pre!r} is not known here, only 'smollm'")
        tokens = self._tokens()
        merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
        vocab = {token: index for index, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        types = self.field("tokenizer.ggml.token_type")
        tokenizer.add_special_tokens(
            [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
        )
        return tokenizer

    def tokenizer_config(self) -> dict[str, Any]:
        """The `tokenizer_config.json`, chat template included."""
        tokens = self._tokens()
        ids = self._token_ids()
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.field("llama.context_length"),
            "clean_up_tokenization_spaces": False,
            "bos_token": tokens[ids["bos_token_id"]],
            "eos_token": tokens[ids["eos_token_id"]],
            "pad_token": tokens[ids["pad_token_id"]],
            "unk_token": tokens[self.field("tokenizer.ggml.unknown_token_id")],
            "chat_template": self.field("tokenizer.chat_template"),
        }

    def _tokens(self) -> list[str]:
        return list(self.field("tokenizer.ggml.tokens"))

    def _token_ids(self) -> dict[str, int]:
        return {
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.field("tokenizer.ggml.padding_token_id"),
        }


def hub_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def unpermute_rope(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k back from llama.cpp's interleaved pairs to transformers' halves.

    GGUF holds rows as (head, pair, half); "rotate half" wants (head, half, pair).
    weight [num_heads * head_dim, hidden] -> same shape.
    """
    rows = weight.reshape(num_heads, -1, 2, weight.shape[-1])
    return rows.swapaxes(1, 2).reshape(weight.shape)
