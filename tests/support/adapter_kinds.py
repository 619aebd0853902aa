"""Every kind of adapter that PEFT writes for a causal language model, written by PEFT itself.

All that an adapter brings is random and away from what PEFT begins with, so that whatever a
reader leaves out shows in the logits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from random_adapter import perturb_pairs, randomize_adapter
from reference_adapters import load_base
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedModel

INVOCATION = (257, 117, 115, 101)
"""``<|im_start|>use``: what the activated kinds are invoked by (byte-level tokens)."""

ADDED_TOKENS = ("<|think|>", "<|/think|>", "<|tool|>")
ADAPTER_TEMPLATE = (
    "{% for message in messages %}<|think|>{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|tool|>{% endif %}"
)

TIED = ("llama32", "qwen3", "gemma2", "gemma3", "smollm2", "smollm3")
UNTIED = tuple(family for family in FAMILIES if family not in TIED)
_FUSED_NAMES = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj") | dict.fromkeys(
    ("gate_proj", "up_proj"), "gate_up_proj"
)
_NO_BIAS = {
    family: "its linears have no biases that PEFT could train"
    for family in FAMILIES
    if family != "qwen2"
}
_NOT_TIED = dict.fromkeys(UNTIED, "its output layer is not the embedding")
_NO_QK_NORM = {
    family: "it has no norms of queries and keys"
    for family in FAMILIES
    if family not in ("qwen3", "gemma3")
}


@dataclass(frozen=True)
class Kind:
    """One kind: ``fields`` of LoraConfig, and what else is done to the model or the files.

    ``skips`` says why a family of ``tiny_models`` can not have it. ``new_tokens`` is by how much
    the vocabulary grows (or shrinks), ``num_shards`` into how many files the weights are split.
    """

    fields: Mapping[str, Any]
    skips: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    new_tokens: int = 0
    num_shards: int = 1
    converted: bool = False
    text_files: bool = False

    @property
    def families(self) -> tuple[str, ...]:
        """The families that can have it."""
        return tuple(family for family in FAMILIES if family not in self.skips)

    @property
    def is_activated(self) -> bool:
        """Whether it applies only from an invocation in the prompt on."""
        return "alora_invocation_tokens" in self.fields

    def make(self, model_dir: Path, out_dir: Path, seed: int = 0) -> Path:
        """Write such an adapter of the model in ``model_dir``; returns ``out_dir``."""
        base = load_base(model_dir)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # PEFT warns of most kinds: tied heads, saved tables
            torch.manual_seed(seed)
            if self.new_tokens:
                _resize(base, base.config.vocab_size + self.new_tokens)
            fields = _for_checkpoint(self.fields, fused=base.config.model_type == "phi3")
            config = LoraConfig(task_type="CAUSAL_LM", **{"lora_dropout": 0.0, **fields})
            if self.converted:
                _save_converted(base, config, out_dir, seed)
            else:
                model = get_peft_model(base, config)
                assert isinstance(model, PeftModel)
                randomize_adapter(model, seed)
                model.to(self.dtype).save_pretrained(str(out_dir))
        if self.text_files:
            _write_text_files(model_dir, out_dir)
        if self.num_shards > 1:
            split_into_shards(out_dir, self.num_shards)
        return out_dir


def _resize(base: PreTrainedModel, vocab_size: int) -> None:
    """Another vocabulary, and tables that were trained since: all rows differ from the base's."""
    base.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        for module in (base.get_input_embeddings(), base.get_output_embeddings()):
            weight = module.weight
            weight.copy_(weight + 0.5 * weight.std() * torch.randn(weight.shape))


def _for_checkpoint(fields: Mapping[str, Any], fused: bool) -> dict[str, Any]:
    """The fields with the names of a checkpoint that fuses q, k, v and gate, up, where it does."""
    if not fused:
        return dict(fields)

    def rename(value: Any) -> Any:
        if isinstance(value, str):
            return _FUSED_NAMES.get(value, value)
        if isinstance(value, dict):
            return {rename(key): item for key, item in value.items()}
        if isinstance(value, list):
            return list(dict.fromkeys(rename(item) for item in value))
        return value

    return {name: rename(value) for name, value in fields.items()}


def _save_converted(base: PreTrainedModel, config: LoraConfig, out_dir: Path, seed: int) -> None:
    """As PEFT's guide has it: keep the initial adapter, train, subtract it while saving."""
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    with TemporaryDirectory() as directory:
        initial = Path(directory, "initial")
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(str(initial))
        perturb_pairs(model, seed)
        model.save_pretrained(str(out_dir), path_initial_model_for_weight_conversion=str(initial))


def _write_text_files(model_dir: Path, out_dir: Path) -> None:
    """The base's tokenizer with the added tokens, and a chat template that uses them."""
    if not Path(model_dir, "tokenizer.json").exists():
        make_tiny_tokenizer(out_dir)
        model_dir = out_dir
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    tokenizer.chat_template = ADAPTER_TEMPLATE
    tokenizer.save_pretrained(out_dir)


def split_into_shards(directory: Path, num_shards: int) -> None:
    """Split an adapter's weights as ``save_pretrained`` of a model does, with an index."""
    whole = directory / "adapter_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"adapter_model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    Path(directory, "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()


def tensor_names(directory: Path) -> list[str]:
    """Names of all tensors of an adapter, whatever files they are in."""
    names: list[str] = []
    for file in sorted(directory.glob("adapter_model*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            names += tensors.keys()
    return sorted(names)


def _kind(**fields: Any) -> Kind:
    options = {name: fields.pop(name) for name in tuple(fields) if name in _OPTIONS}
    rank = fields.setdefault("r", 8)
    fields.setdefault("lora_alpha", 2 * rank)
    fields.setdefault("target_modules", "all-linear")
    return Kind(fields, **options)


_OPTIONS = frozenset(Kind.__dataclass_fields__)
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_LINEARS = [*_ATTENTION, "gate_proj", "up_proj", "down_proj"]
_EMBED, _HEAD = "embed_tokens", "lm_head"
_NORMS = ["input_layernorm", "post_attention_layernorm", "model.norm"]
# PEFT sorts the keys when it saves, so they are in that order here: the first that matches wins.
_PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 33, r"layers\.1\.mlp\.up_proj": 4, "up_proj": 2},
    "alpha_pattern": {r"^model.layers.0.self_attn.o_proj": 100, "mlp.*": 3.5, "v_proj": 1},
}

KINDS: dict[str, Kind] = {
    **{f"rank {rank}": _kind(r=rank) for rank in (1, 3, 8, 16, 37, 64, 512)},
    "rank_pattern": _kind(rank_pattern=_PATTERNS["rank_pattern"]),
    "alpha_pattern": _kind(alpha_pattern=_PATTERNS["alpha_pattern"]),
    "rslora": _kind(r=20, lora_alpha=10, use_rslora=True),
    "rslora, patterns": _kind(use_rslora=True, **_PATTERNS),
    "target list": _kind(target_modules=["q_proj", "down_proj"]),
    "target regex": _kind(
        target_modules=r".*layers\.[12]\.(self_attn|mlp)\.(k|down|qkv|gate_up)_proj"
    ),
    "exclude_modules": _kind(target_modules=_LINEARS, exclude_modules=["o_proj"]),
    "exclude regex": _kind(target_modules=_LINEARS, exclude_modules=r".*layers\.0\..*"),
    "layers_to_transform": _kind(target_modules=_ATTENTION, layers_to_transform=[1, 3]),
    "layers_pattern": _kind(
        target_modules=_LINEARS, layers_to_transform=[2], layers_pattern="layers"
    ),
    "fp16": _kind(dtype=torch.float16),
    "bf16": _kind(dtype=torch.bfloat16),
    "sharded": _kind(num_shards=3),
    "pissa, converted": _kind(r=4, init_lora_weights="pissa", converted=True),
    "olora, converted": _kind(r=4, init_lora_weights="olora", converted=True),
    "bias all": _kind(target_modules=["q_proj", "o_proj"], bias="all", skips=_NO_BIAS),
    "bias lora_only": _kind(target_modules=["k_proj", "o_proj"], bias="lora_only", skips=_NO_BIAS),
    "lora_bias": _kind(lora_bias=True),
    "lora_bias, rslora": _kind(r=12, lora_bias=True, use_rslora=True, lora_alpha=6),
    "lora_bias, bias all": _kind(lora_bias=True, bias="all", skips=_NO_BIAS),
    "dora": _kind(use_dora=True),
    "dora, some": _kind(use_dora=True, target_modules=["v_proj", "up_proj"]),
    "dora, rslora, patterns": _kind(use_dora=True, use_rslora=True, **_PATTERNS),
    "dora, bias all": _kind(
        use_dora=True, bias="all", target_modules=["q_proj", "up_proj"], skips=_NO_BIAS
    ),
    "dora, bf16": _kind(use_dora=True, dtype=torch.bfloat16),
    "embed": _kind(target_modules=[_EMBED]),
    "head": _kind(target_modules=[_HEAD]),
    "embed, head, linears": _kind(
        target_modules=[_EMBED, _HEAD, *_LINEARS], rank_pattern={_EMBED: 3, _HEAD: 21}
    ),
    "embed, tied": _kind(
        target_modules=[_EMBED, "q_proj"], ensure_weight_tying=True, skips=_NOT_TIED
    ),
    "head, lora_bias": _kind(target_modules=[_HEAD, "o_proj"], lora_bias=True),
    "dora, embed": _kind(use_dora=True, target_modules=[_EMBED]),
    "dora, head": _kind(use_dora=True, target_modules=[_HEAD]),
    "dora, embed, head, linears": _kind(use_dora=True, target_modules=[_EMBED, _HEAD, *_LINEARS]),
    "saved embed": _kind(modules_to_save=[_EMBED]),
    "saved head": _kind(modules_to_save=[_HEAD]),
    "saved embed, head": _kind(modules_to_save=[_EMBED, _HEAD]),
    "saved embed, tied": _kind(
        modules_to_save=[_EMBED, _HEAD], ensure_weight_tying=True, skips=_NOT_TIED
    ),
    "saved norms": _kind(modules_to_save=_NORMS),
    "saved q and k norms": _kind(modules_to_save=["q_norm", "k_norm"], skips=_NO_QK_NORM),
    "saved head, embed LoRA": _kind(target_modules=[_EMBED, "v_proj"], modules_to_save=[_HEAD]),
    "token rows": _kind(trainable_token_indices=[5, 97, 258]),
    "token rows, by name": _kind(trainable_token_indices={_EMBED: [101, 3, 32]}),
    "token rows of the head": _kind(trainable_token_indices={_HEAD: [7, 110]}),
    "token rows, two sets": _kind(trainable_token_indices={_EMBED: [98, 1], _HEAD: [200, 9, 99]}),
    "token rows, head LoRA": _kind(
        trainable_token_indices=[5, 97], target_modules=[_HEAD, "q_proj"]
    ),
    "token rows, dora": _kind(trainable_token_indices=[5, 97], use_dora=True),
    "added tokens": _kind(new_tokens=3, text_files=True),
    "added tokens, saved": _kind(new_tokens=3, modules_to_save=[_EMBED, _HEAD], text_files=True),
    "added tokens, rows": _kind(new_tokens=3, trainable_token_indices=[260, 261, 262]),
    "added tokens, embed and head LoRA": _kind(
        new_tokens=3, target_modules=[_EMBED, _HEAD, "o_proj"], use_dora=True
    ),
    "fewer tokens": _kind(new_tokens=-1),
    "alora": _kind(r=32, alora_invocation_tokens=list(INVOCATION)),
    "alora, bias all": _kind(alora_invocation_tokens=list(INVOCATION), bias="all", skips=_NO_BIAS),
    "alora, saved norms": _kind(alora_invocation_tokens=list(INVOCATION), modules_to_save=_NORMS),
    "alora, token rows": _kind(
        alora_invocation_tokens=list(INVOCATION), trainable_token_indices=[97, 101]
    ),
}
