"""Safetensors, memory-mapped, copied tensor by tensor into the decoder's fused parameters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..kernels import ops
from .config import Quantization
from .models.checkpoint import StoredTensor, open_checkpoint
from .models.config import ModelConfig, UnsupportedModelError
from .models.decoder import Decoder, DecoderWeights
from .models.layer import LayerWeights
from .progress import OnProgress, Progress, tell_nobody
from .quantization import require_multiples
from .weight_copy import WeightCopier, open_copier

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
MAX_NAMED = 4


@dataclass(frozen=True, slots=True)
class WeightForm:
    """How parameters are kept: where, in which dtype, and the layers' linears in 8 bits or not."""

    dtype: torch.dtype
    device: torch.device
    quantization: Quantization | None = None


def load_decoder(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    max_model_len: int | None = None,
    *,
    quantization: Quantization | None = None,
    on_progress: OnProgress = tell_nobody,
) -> Decoder:
    """Load the checkpoint in directory ``path``; tensors are converted to ``dtype`` one by one.

    Raises UnsupportedModelError that names missing, unexpected and misshapen tensors, and
    EngineStartError for a linear whose shape ``quantization`` can't have.
    """
    form = WeightForm(dtype, torch.device(device), quantization)
    with ExitStack() as stack:
        stored = open_checkpoint(Path(path), stack)
        tied = config.tie_word_embeddings and tie(stored)
        # Checked against parameters without memory first: a wrong config.json allocates nothing.
        planned = _Parameters(replace(form, device=torch.device("meta")))
        _allocate(config, planned, tied)
        _check_names(Path(path), planned.targets, stored)
        for name, target in planned.targets.items():
            stored[name].check(target)
        if form.device.type == "cuda" and quantization is not None:
            require_multiples(planned.quantized)
        meter = _Meter(sum(stored[name].read().nbytes for name in planned.targets), on_progress)
        copier = stack.enter_context(open_copier(form.device, meter.add))
        weights = _allocate(config, _Parameters(form, _Source(stored, copier)), tied)
    return Decoder(config, weights, max_model_len)


class _Meter:
    """Says how much of a checkpoint has been read."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._total = total
        self._on_progress = on_progress
        self._done = 0

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._on_progress(Progress("loading weights", self._done, self._total))


@dataclass(frozen=True, slots=True)
class _Source:
    """An open checkpoint, and what copies out of it."""

    stored: Mapping[str, StoredTensor]
    copier: WeightCopier

    def fill(self, name: str, target: Tensor) -> None:
        self.copier.copy(target, self.stored[name].read())


class _Parameters:
    """Allocates parameters one by one, and fills each at once from ``source``.

    Without one it only notes: in ``targets`` which stored tensor is to fill which part, and in
    ``quantized`` the shapes of weights in 8 bits.
    """

    def __init__(self, form: WeightForm, source: _Source | None = None) -> None:
        self.targets: dict[str, Tensor] = {}
        self.quantized: dict[str, tuple[int, int]] = {}
        self._form = form
        self._source = source
        self._scratch = self._empty(0)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._form.dtype, device=self._form.device)

    def whole(self, name: str, *shape: int) -> Tensor:
        """A parameter stored under its own name."""
        return self.stacked({name: shape[0]}, *shape[1:])

    def stacked(self, parts: Mapping[str, int], *shape: int) -> Tensor:
        """A parameter whose first axis is cut into stored tensors, ``{name: rows}``."""
        parameter = self._empty(sum(parts.values()), *shape)
        self._fill(parts, parameter)
        return parameter

    def _fill(self, parts: Mapping[str, int], parameter: Tensor) -> None:
        for name, cut in zip(parts, parameter.split_with_sizes(tuple(parts.values())), strict=True):
            if self._source is None:
                self.targets[name] = cut
            else:
                self._source.fill(name, cut)

    def head(self, parts: Mapping[str, int], in_features: int) -> Tensor:
        """The weight [rows, in_features] of a linear, packed where the device wants it."""
        packs = ops.packs_linear(self._form.dtype, self._form.device)
        if self._source is None or not packs:
            return self.stacked(parts, in_features)
        return ops.pack_linear(self._scratched(parts, in_features))

    def linear(self, parts: Mapping[str, int], in_features: int) -> ops.LinearWeight:
        """The weight of a layer's linear: as a head's, or in 8 bits if they are wanted."""
        if self._form.quantization is None:
            return self.head(parts, in_features)
        if self._source is None:
            self.quantized[next(iter(parts))] = (sum(parts.values()), in_features)
            return self.stacked(parts, in_features)
        return ops.quantize_weight(self._scratched(parts, in_features))

    def _scratched(self, parts: Mapping[str, int], in_features: int) -> Tensor:
        """A plain weight that is there until the next one comes.

        One scratch serves all of them: freed one by one they would leave holes.
        """
        size = sum(parts.values()) * in_features
        if self._scratch.numel() < size:
            self._scratch = self._empty(size)
        weight = self._scratch[:size].view(-1, in_features)
        self._fill(parts, weight)
        return weight


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
        return parameters.head({LM_HEAD: config.vocab_size}, config.hidden_size)
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

    def linear(module: str, rows: dict[str, int], in_features: int) -> ops.LinearWeight:
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
