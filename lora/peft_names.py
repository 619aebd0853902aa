"""The names of PEFT's tensors, and of the modules of a base that they can belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .shapes import GroupShape, ModuleShapes

PREFIX = "base_model.model."

LORA_A, LORA_B, LORA_BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"
WEIGHT, BIAS = "weight", "bias"
BASE_WEIGHT, BASE_BIAS = "base_layer.weight", "base_layer.bias"
TOKEN_ROWS, TOKEN_BASE = "token_adapter.trainable_tokens_delta", "token_adapter.base_layer.weight"
# PEFT writes these two as well, beside ``weight``, where the vocabulary was resized.
SAVED_COPY, ORIGINAL = "modules_to_save.weight", "original_module.weight"

# The longer ones first, as some end like others.
_PARTS = (
    *(TOKEN_ROWS, TOKEN_BASE, SAVED_COPY, ORIGINAL, BASE_WEIGHT, BASE_BIAS),
    *(LORA_A, LORA_B, LORA_BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, WEIGHT, BIAS),
)
_OWNERS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}

# How bases call their decoder, text models inside others too, and their output layer.
_DECODERS = {
    "model": "lm_head",
    "model.language_model": "lm_head",
    "language_model.model": "language_model.lm_head",
}


def tensor_name(module: str, part: str) -> str:
    """How PEFT calls a part of a module's adapter."""
    return f"{PREFIX}{module}.{part}"


def split_name(name: str) -> tuple[str, str] | None:
    """A tensor's module and part; None for a name that PEFT does not give."""
    if not name.startswith(PREFIX):
        return None
    rest = name.removeprefix(PREFIX)
    for part in _PARTS:
        if rest.endswith(f".{part}"):
            return rest.removesuffix(f".{part}"), part
    return None


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear of the base: its ``path`` in the adapter's base, its name in our checkpoint.

    ``start`` is where its rows begin in its group. ``slice_index`` is None for a checkpoint's
    fused linear, which covers all slices at once.
    """

    path: str
    base_name: str
    group: str
    layer: int
    slice_index: int | None
    start: int
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the base; ``name`` is ours (see ``shapes.NormShape``)."""

    path: str
    base_name: str
    name: str
    layer: int
    size: int


@dataclass(frozen=True, slots=True)
class BaseModules:
    """What an adapter can change, by the paths that its own base has."""

    linears: dict[str, Linear]
    norms: dict[str, Norm]
    embedding: str
    head: str

    @classmethod
    def of(cls, shapes: ModuleShapes, tensor_names: Iterable[str]) -> BaseModules:
        """The modules of our base; how the adapter's base calls its decoder its tensors tell."""
        decoder = _decoder_of(tensor_names)
        linears, norms = {}, {}
        for layer in range(shapes.num_layers):
            path, base_path = f"{decoder}.layers.{layer}", f"model.layers.{layer}"
            for group, shape in shapes.groups.items():
                for linear in _linears(path, base_path, layer, group, shape):
                    linears[linear.path] = linear
            for shape_of_norm in shapes.norms if shapes.vocab_size else ():
                norm = Norm(
                    f"{path}.{shape_of_norm.module}",
                    f"{base_path}.{shape_of_norm.module}",
                    shape_of_norm.name,
                    layer,
                    shape_of_norm.size,
                )
                norms[norm.path] = norm
        final = shapes.final_norm
        if final is not None and shapes.vocab_size:
            path = f"{decoder}.{final.module}"
            norms[path] = Norm(path, f"model.{final.module}", final.name, 0, final.size)
        return cls(linears, norms, f"{decoder}.embed_tokens", _DECODERS[decoder])


def _linears(path: str, base_path: str, layer: int, group: str, shape: GroupShape) -> list[Linear]:
    owner = _OWNERS[group]
    if shape.fused_name is not None:
        name = f"{owner}.{shape.fused_name}"
        sizes = (shape.in_features, shape.out_features)
        return [Linear(f"{path}.{name}", f"{base_path}.{name}", group, layer, None, 0, *sizes)]
    found, start = [], 0
    for index, (slice_name, size) in enumerate(shape.slices):
        name = f"{owner}.{slice_name}"
        places = (group, layer, index, start, shape.in_features, size)
        found.append(Linear(f"{path}.{name}", f"{base_path}.{name}", *places))
        start += size
    return found


def _decoder_of(tensor_names: Iterable[str]) -> str:
    for name in tensor_names:
        parts = split_name(name)
        for decoder in _DECODERS if parts is not None else ():
            rest = parts[0].removeprefix(f"{decoder}.") if parts is not None else ""
            if rest.startswith("layers.") or rest in ("embed_tokens", "norm"):
                return decoder
    return "model"
