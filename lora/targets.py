"""What the tensors of an adapter are for: each is asked for by its configuration, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .adapter import AdapterConfig
from .errors import AdapterError
from .matcher import ModuleMatcher
from .peft_names import (
    BASE_BIAS,
    BIAS,
    LORA_A,
    LORA_B,
    LORA_BIAS,
    MAGNITUDE,
    WEIGHT,
    BaseModules,
    Linear,
    Norm,
    split_name,
    tensor_name,
)
from .shapes import ModuleShapes
from .table_targets import TableTargets, plan_tables

LEFT_OUT = "target_modules, exclude_modules or layers_to_transform leave this module out"


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """The low-rank pair on one linear, with DoRA's magnitude or a bias on B where it has them."""

    linear: Linear
    rank: int
    scale: float
    has_magnitude: bool
    has_bias: bool

    def name(self, part: str) -> str:
        """Name of one of its tensors."""
        return tensor_name(self.linear.path, part)

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Its tensors and the shapes they must have."""
        linear = self.linear
        shapes: dict[str, tuple[int, ...]] = {
            self.name(LORA_A): (self.rank, linear.in_features),
            self.name(LORA_B): (linear.out_features, self.rank),
        }
        if self.has_magnitude:
            shapes[self.name(MAGNITUDE)] = (linear.out_features,)
        if self.has_bias:
            shapes[self.name(LORA_BIAS)] = (linear.out_features,)
        return shapes


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """All that an adapter holds: ``biases`` (trained ones of the base) and ``norms`` by tensor."""

    targets: list[LoraTarget]
    biases: dict[str, Linear]
    norms: dict[str, Norm]
    tables: TableTargets

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that are read and the shapes they must have."""
        shapes = dict(self.tables.tensor_shapes)
        for target in self.targets:
            shapes |= target.tensor_shapes
        shapes |= {name: (linear.out_features,) for name, linear in self.biases.items()}
        return shapes | {name: (norm.size,) for name, norm in self.norms.items()}


def plan_adapter(
    tensors: Mapping[str, tuple[int, ...]], config: AdapterConfig, shapes: ModuleShapes
) -> AdapterPlan:
    """What a file with tensors of these names and shapes holds, in the order of layers.

    Raises AdapterError for a tensor of no known module, for one that the configuration leaves
    out, for one that it asks for and is missing, and for what is not served.
    """
    modules = BaseModules.of(shapes, tensors)
    matcher = ModuleMatcher(config)
    _refuse_saved_blocks(modules, matcher)
    targets = [
        LoraTarget(
            linear,
            matcher.rank_of(path),
            matcher.scale_of(path),
            config.use_dora,
            config.lora_bias,
        )
        for path, linear in modules.linears.items()
        if matcher.targets(path)
    ]
    tables = plan_tables(tensors, modules, config, matcher, shapes)
    biases = _biases(tensors, modules, config, {target.linear.path for target in targets})
    norms = _norms(modules, matcher)
    plan = AdapterPlan(targets, biases, norms, tables)
    wanted = plan.tensor_shapes
    for name in sorted(tensors.keys() - wanted.keys() - tables.ignored):
        _refuse_tensor(name, modules, config)
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise AdapterError(
            missing[0], f"missing, with {len(missing) - 1} more; the configuration asks for it"
        )
    if not wanted:
        raise AdapterError("target_modules", "matches no module of the base model")
    return plan


def _refuse_saved_blocks(modules: BaseModules, matcher: ModuleMatcher) -> None:
    """Of whole modules only embedding, output layer and norms are served."""
    blocks = {path.rpartition(".")[0] for path in (*modules.linears, *modules.norms)}
    blocks |= {block.rpartition(".")[0] for block in blocks}
    blocks |= {block.rpartition(".")[0] for block in blocks}
    for path in sorted(blocks - {""}) + list(modules.linears):
        if matcher.saves(path):
            raise AdapterError(
                "modules_to_save",
                f"takes in {path}; wholly trained modules are served for the embedding, the "
                "output layer and norms only",
            )


def _norms(modules: BaseModules, matcher: ModuleMatcher) -> dict[str, Norm]:
    return {
        tensor_name(path, WEIGHT): norm
        for path, norm in modules.norms.items()
        if matcher.saves(path)
    }


def _biases(
    tensors: Mapping[str, tuple[int, ...]],
    modules: BaseModules,
    config: AdapterConfig,
    targeted: set[str],
) -> dict[str, Linear]:
    """Those that are there; PEFT leaves the base's where one is not."""
    if config.bias == "none":
        return {}
    paths = modules.linears.keys() if config.bias == "all" else targeted
    names = {
        tensor_name(path, BASE_BIAS if path in targeted else BIAS): modules.linears[path]
        for path in paths
    }
    return {name: linear for name, linear in names.items() if name in tensors}


def _refuse_tensor(name: str, modules: BaseModules, config: AdapterConfig) -> None:
    """Raise AdapterError that says why nothing asks for a tensor."""
    module, part = split_name(name) or ("", "")
    if not module or ".lora_" in module:
        raise AdapterError(name, "is not named as PEFT names the tensors of a LoRA adapter")
    if part == MAGNITUDE and not config.use_dora:
        raise AdapterError("use_dora", f"is false, but there is {name}")
    if part == LORA_BIAS and not config.lora_bias:
        raise AdapterError("lora_bias", f"is false, but there is {name}")
    if module in modules.linears:
        _refuse_part_of_linear(name, module, part, config)
    if module in modules.norms:
        raise AdapterError(name, "modules_to_save does not name this norm")
    if module in (modules.embedding, modules.head):
        raise AdapterError(
            name,
            "target_modules, modules_to_save or trainable_token_indices leave it out, "
            "or the base model's embedding and output layer can not be adapted",
        )
    leaves = sorted({path.rpartition(".")[2] for path in modules.linears})
    num_layers = 1 + max((linear.layer for linear in modules.linears.values()), default=-1)
    raise AdapterError(
        name,
        f"the base model has no {module}; it has {num_layers} layers with {', '.join(leaves)}",
    )


def _refuse_part_of_linear(name: str, module: str, part: str, config: AdapterConfig) -> None:
    if part in (BIAS, BASE_BIAS):
        if config.bias == "none":
            raise AdapterError("bias", f'is "none", but there is {name}')
        raise AdapterError(
            name, f'is not where PEFT reads the bias of this module with bias "{config.bias}"'
        )
    if part in (LORA_A, LORA_B, LORA_BIAS, MAGNITUDE):
        raise AdapterError(name, LEFT_OUT)
    raise AdapterError("modules_to_save", f"a wholly trained linear is not served: {module}")
