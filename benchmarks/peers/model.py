"""The model that all peers serve: a random Llama of 38 M parameters and eight adapters."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from string import ascii_lowercase

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NUM_ADAPTERS = 8
RANK = 16
VOCAB_SIZE = 16_000
END_OF_TEXT = "<|endoftext|>"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def prepare(directory: Path, num_layers: int = 8) -> dict[str, Path]:
    """Write the model and its adapters below ``directory``, once; paths by model name."""
    paths = {"base": directory / "base"}
    paths |= {f"adapter{index}": directory / f"adapter{index}" for index in range(NUM_ADAPTERS)}
    if not (directory / "done").exists():
        torch.manual_seed(0)
        model = LlamaForCausalLM(_config(num_layers))
        model.generation_config.eos_token_id = 0
        model.save_pretrained(paths["base"])
        tokenizer().save_pretrained(paths["base"])
        _save_adapters(model, directory)
        (directory / "done").touch()
    return paths


def _config(num_layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1280,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )


def _save_adapters(model: LlamaForCausalLM, directory: Path) -> None:
    # Not init_lora_weights: B would be zero and every adapter the base model.
    config = LoraConfig(
        r=RANK, lora_alpha=32, target_modules=list(LINEARS), init_lora_weights=False
    )
    names = [f"adapter{index}" for index in range(NUM_ADAPTERS)]
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    for name in names:
        wrapped.peft_config[name].base_model_name_or_path = str(directory / "base")
    # One adapter a folder: save_pretrained(directory) writes directory/NAME.
    wrapped.save_pretrained(str(directory), selected_adapters=names)


def tokenizer(vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Byte-level BPE; all but the bytes are two and three letters, so random ids are text."""
    pairs = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    triples = ["".join(triple) for triple in product(ascii_lowercase, repeat=3)]
    tokens = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pairs, *triples]
    tokens = tokens[:vocab_size]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [(token[:-1], token[-1]) for token in tokens[257:]]
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT)
