"""Safetensors, memory-mapped, copied tensor by tensor into the decoder's fused parameters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ..kernels import ops
from .models.checkpoint import StoredTensor, open_checkpoint
from .models.config import ModelConfig, UnsupportedModelError
from .models.decoder import Decoder, DecoderWeights
from .models.layer import LayerWeights

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
MAX_NAMED = 4


def load_decoder(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    max_model_len: int | None = None,
) -> Decoder:
    """Load the checkpoint in directory ``path``; tensors are converted to ``dtype`` one by one.

    Raises UnsupportedModelError that names missing, unexpected and misshapen tensors.
    """
    with ExitStack() as stack:
        stored = open_checkpoint(Path(path), stack)
        tied = config.tie_word_embeddings and tie(stored)
        # Checked against parameters without memory first: a wrong config.json allocates nothing.
        planned = _Parameters(dtype, torch.device("meta"))
        _allocate(config, planned, tied)
        _check_names(Path(path), planned.targets, stored)
        for name, target in planned.targets.items():
            stored[name].check(target)
        weights = _allocate(config, _Parameters(dtype, torch.device(device), stored), tied)
    return Decoder(config, weights, max_model_len)


class _Parameters:
    """Allocates parameters one by one, and fills each at once from ``stored``.

    Without ``stored`` it only notes in ``targets`` which stored tensor is to fill which part.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        stored: Mapping[str, StoredTensor] | None = None,
    ) -> None:
        self.targets: dict[str, Tensor] = {}
        self._dtype = dtype
        self._device = device
        self._stored = stored
        self._scratch = torch.empty(0, dtype=dtype, device=device)

    def whole(self, name: str, *shape: int) -> Tensor:
        """A parameter stored under its own name."""
        return self.stacked({name: shape[0]}, *shape[1:])

    def stacked(self, parts: Mapping[str, int], *shape: int) -> Tensor:
        """A parameter whose first axis is cut into stored tensors, ``{name: rows}``."""
        rows = sum(parts.values())
        parameter = torch.empty((rows, *shape), dtype=self._dtype, device=self._device)
        self._fill(parts, parameter)
        return parameter

    def _fill(self, parts: Mapping[str, int], parameter: Tensor) -> None:
        for name, cut in zip(parts, parameter.split_with_sizes(tuple(parts.values())), strict=True):
            if self._stored is None:
                self.targets[name] = cut
            else:
                cut.copy_(self._stored[name].read())

    def linear(self, parts: Mapping[str, int], in_features: int) -> Tensor:
        """The weight [rows, in_features] of a linear layer, packed where the device wants it.

        One scratch serves all plain weights: freed one by one they would leave holes.
        """
        if self._stored is None or not ops.packs_linear(self._dtype, self._device):
            return self.stacked(parts, in_features)
        rows = sum(parts.values())
        if self._scratch.numel() < rows * in_features:
            self._scratch = torch.empty(rows * in_features, dtype=self._dtype, device=self._device)
        weight = self._scratch[: rows * in_features].view(rows, in_features)
        self._fill(parts, weight)
        return ops.pack_linear(weight)


def _allocate(config: ModelConfig, parameters: _Parameters, tied: bool) -> DecoderWeights:
    vocab, hidden = config.vocab_size, config.hidden_size
    embedding = parameters.whole(EMBEDDING, vocab, hidden)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(config, parameters, index) for index in range(config.num_layers)),
        final_norm=parameters.whole("model.norm.weight", hidden),
        lm_head=_lm_head(config, parameters, embedding if tied else None),
    )


def _lm_head(config: ModelConfig, parameters: _Parameters, tied: Tensor | None) -> Tensor:
    """Tied to the embedding it is the same tensor, unless a linear wants a layout of its own."""
    if tied is None:
        return parameters.linear({LM_HEAD: config.vocab_size}, config.hidden_size)
    return tied if tied.is_meta else ops.pack_linear(tied)


def _layer(config: ModelConfig, parameters: _Parameters, index: int) -> LayerWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    prefix = f"model.layers.{index}."
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    qkv = {"q_proj": query, "k_proj": key, "v_proj": key}
    gate_up = {"gate_proj": inner, "up_proj": inner}
    if config.fused_projections:
        qkv, gate_up = {"qkv_proj": query + 2 * key}, {"gate_up_proj": 2 * inner}

    def norm(name: str, size: int = hidden) -> Tensor:
        return parameters.whole(f"{prefix}{name}.weight", size)

    def linear(module: str, rows: dict[str, int], in_features: int) -> Tensor:
        parts = {f"{module}{name}.weight": size for name, size in rows.items()}
        return parameters.linear(parts, in_features)

    def biases(module: str, rows: dict[str, int]) -> Tensor:
        return parameters.stacked({f"{module}{name}.bias": r for name, r in rows.items()})

    sandwich = config.sandwich_norms
    return LayerWeights(
        attention_norm=norm("input_layernorm"),
        qkv=linear(attention, qkv, hidden),
        qkv_bias=biases(attention, qkv) if config.qkv_bias else None,
        q_norm=norm("self_attn.q_norm", config.head_dim) if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm", config.head_dim) if config.qk_norm else None,
        o=linear(attention, {"o_proj": hidden}, query),
        o_bias=parameters.whole(f"{attention}o_proj.bias", hidden) if config.o_bias else None,
        attention_output_norm=norm("post_attention_layernorm") if sandwich else None,
        mlp_norm=norm("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"),
        gate_up=linear(mlp, gate_up, hidden),
        gate_up_bias=biases(mlp, gate_up) if config.mlp_bias else None,
        down=linear(mlp, {"down_proj": hidden}, inner),
        down_bias=parameters.whole(f"{mlp}down_proj.bias", hidden) if config.mlp_bias else None,
        mlp_output_norm=norm("post_feedforward_layernorm") if sandwich else None,
    )


def tie(stored: dict[str, StoredTensor]) -> bool:
    """Leave one matrix of the two; False if both are there and differ (as in transformers)."""
    if LM_HEAD in stored and EMBEDDING in stored:
        if not torch.equal(stored[LM_HEAD].read(), stored[EMBEDDING].read()):
            return False
        del stored[LM_HEAD]
    elif LM_HEAD in stored:
        stored[EMBEDDING] = stored.pop(LM_HEAD)
    return True


def _check_names(
    path: Path, targets: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]
) -> None:
    missing = [name for name in targets if name not in stored]
    if missing:
        raise UnsupportedModelError(f"{path}: missing tensors: {_listed(missing)}")
    unexpected = [name for name in stored if name not in targets]
    if unexpected:
        raise UnsupportedModelError(f"{path}: unexpected tensors: {_listed(unexpected)}")


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
