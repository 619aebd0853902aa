"""The LoRA tensors that a base model and a configuration ask for, by PEFT's names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .adapter import AdapterConfig
from .errors import AdapterError
from .shapes import GroupShape, ModuleShapes

_LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_[AB]\.weight")
_LAYER_MODULE = re.compile(
    r"(?P<prefix>model|model\.language_model|language_model\.model)"
    r"\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.\w+"
)
_OWNERS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}

# Parts of names that tell which feature a tensor that is no pair of ours belongs to.
_FEATURES = (
    ("lora_magnitude_vector", "use_dora", "DoRA is not served yet"),
    (".lora_B.bias", "lora_bias", "a bias on lora_B is not served yet"),
    ("trainable_tokens", "trainable_token_indices", "trained token rows are not served yet"),
    ("embed_tokens", "embed_tokens", "adapted embeddings are not served yet"),
    ("lm_head", "lm_head", "an adapted output layer is not served yet"),
    (".bias", "bias", "trained biases are not served yet"),
)


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """One LoRA pair: where it goes and what it must look like.

    ``slice_index`` is None for a checkpoint's fused linear, which covers all slices at once.
    """

    module: str
    group: str
    layer: int
    slice_index: int | None
    rank: int
    scale: float
    in_features: int
    out_features: int

    @property
    def a_name(self) -> str:
        """Name of the tensor A, [rank, in_features]."""
        return f"base_model.model.{self.module}.lora_A.weight"

    @property
    def b_name(self) -> str:
        """Name of the tensor B, [out_features, rank]."""
        return f"base_model.model.{self.module}.lora_B.weight"

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, int]]:
        """The pair's tensors and the shapes they must have."""
        return {
            self.a_name: (self.rank, self.in_features),
            self.b_name: (self.out_features, self.rank),
        }


def match_targets(
    tensor_names: Iterable[str], config: AdapterConfig, shapes: ModuleShapes
) -> list[LoraTarget]:
    """The pairs that a file with these tensors holds, in the order of layers.

    Raises AdapterError for a tensor that is no LoRA half of a known module, for one whose module
    the configuration leaves out, and for one that the configuration asks for and is missing.
    """
    names = set(tensor_names)
    known = {target.module: target for target in _all_targets(_prefix(names), config, shapes)}
    for name in sorted(names):
        _check_name(name, known, config)
    wanted = [target for target in known.values() if config.targets(target.module)]
    missing = [name for target in wanted for name in target.tensor_shapes if name not in names]
    if missing:
        raise AdapterError(
            missing[0], f"missing, with {len(missing) - 1} more; the configuration targets it"
        )
    if not wanted:
        raise AdapterError("target_modules", "matches no linear module of the base model")
    return wanted


def _prefix(names: set[str]) -> str:
    """How this adapter's base calls the decoder; text models inside others have longer names."""
    for name in names:
        tensor = _LORA_TENSOR.fullmatch(name)
        module = _LAYER_MODULE.fullmatch(tensor["module"]) if tensor else None
        if module is not None:
            return module["prefix"]
    return "model"


def _all_targets(prefix: str, config: AdapterConfig, shapes: ModuleShapes) -> list[LoraTarget]:
    return [
        target
        for layer in range(shapes.num_layers)
        for group, shape in shapes.groups.items()
        for target in _group_targets(f"{prefix}.layers.{layer}", layer, group, shape, config)
    ]


def _group_targets(
    path: str, layer: int, group: str, shape: GroupShape, config: AdapterConfig
) -> list[LoraTarget]:
    parts: list[tuple[str, int | None, int]] = [
        (name, index, size) for index, (name, size) in enumerate(shape.slices)
    ]
    if shape.fused_name is not None:
        parts = [(shape.fused_name, None, shape.out_features)]
    targets = []
    for name, index, out_features in parts:
        module = f"{path}.{_OWNERS[group]}.{name}"
        rank, scale = config.rank_of(module), config.scale_of(module)
        targets.append(
            LoraTarget(module, group, layer, index, rank, scale, shape.in_features, out_features)
        )
    return targets


def _check_name(name: str, known: dict[str, LoraTarget], config: AdapterConfig) -> None:
    tensor = _LORA_TENSOR.fullmatch(name)
    module = tensor["module"] if tensor else None
    if module in known:
        if not config.targets(module):
            raise AdapterError(
                name,
                "target_modules, exclude_modules or layers_to_transform leave this module out",
            )
        return
    for part, field, reason in _FEATURES:
        if part in name:
            raise AdapterError(field, f"{reason} (tensor {name})")
    if module is None:
        raise AdapterError(name, "is not a lora_A or lora_B weight as PEFT names them")
    modules = sorted({target.module.rpartition(".")[2] for target in known.values()})
    num_layers = 1 + max((target.layer for target in known.values()), default=-1)
    raise AdapterError(
        name,
        f"the base model has no linear {module}; it has {num_layers} layers with "
        + ", ".join(modules),
    )
