"""An adapter's vectors: what its groups' outputs are scaled and shifted by, and its norms."""

from __future__ import annotations

import torch
from torch import Tensor

from .base_tensors import BaseTensors, require_base
from .dora import magnitude_scale, row_norms
from .peft_names import BASE_BIAS, BIAS, LORA_A, LORA_B, LORA_BIAS, MAGNITUDE, Linear, tensor_name
from .shapes import ModuleShapes, VectorLayout
from .targets import AdapterPlan, LoraTarget
from .tensor_files import AdapterTensors, require_finite
from .weights import DenseWeights


def read_vectors(
    tensors: AdapterTensors, plan: AdapterPlan, shapes: ModuleShapes, base: BaseTensors
) -> DenseWeights:
    """The vectors of an adapter; ``vectors`` is None if it has none.

    Raises AdapterError for a base that lacks what an adapter's biases or magnitudes are for.
    """
    targets = [target for target in plan.targets if target.has_magnitude or target.has_bias]
    if not (targets or plan.biases or plan.norms):
        return DenseWeights()
    reader = _VectorReader(tensors, plan, shapes, base)
    by_path = {target.linear.path: target for target in targets}
    linears = {linear.path: linear for linear in plan.biases.values()}
    linears |= {target.linear.path: target.linear for target in targets}
    for path, linear in linears.items():
        reader.put_affine(linear, by_path.get(path))
    groups = frozenset(linear.group for linear in linears.values())
    norms = frozenset(norm.name for norm in plan.norms.values())
    return DenseWeights(reader.vectors, groups, norms)


class _VectorReader:
    """Fills one row of vectors, which begins as the base has it."""

    def __init__(
        self, tensors: AdapterTensors, plan: AdapterPlan, shapes: ModuleShapes, base: BaseTensors
    ) -> None:
        self._tensors, self._plan, self._base = tensors, plan, base
        self._layout = shapes.vectors
        self.vectors = _unchanged(shapes, base)
        for name, norm in plan.norms.items():
            self._put(self._layout.norm(norm.name, norm.layer), tensors.read(name))

    def put_affine(self, linear: Linear, target: LoraTarget | None) -> None:
        """One linear's factor m/|W + BA| and what is added: y = (W x + b + BA x) scale + shift.

        PEFT scales all but the bias, which is its own or the base's, and multiplies a bias on B
        by the pair's own scale.
        """
        scale = torch.ones(linear.out_features)
        if target is not None and target.has_magnitude:
            scale = self._dora_scale(target)
        shift = self._bias(linear) - scale * self._base_bias(linear)
        if target is not None and target.has_bias:
            shift = shift + target.scale * self._tensors.read(target.name(LORA_BIAS))
        require_finite(tensor_name(linear.path, BIAS), shift)
        start, _ = self._layout.scale(linear.group, linear.layer)
        self._put((start + linear.start, linear.out_features), scale)
        start, _ = self._layout.shift(linear.group, linear.layer)
        self._put((start + linear.start, linear.out_features), shift)

    def _dora_scale(self, target: LoraTarget) -> Tensor:
        weight = require_base(self._base, f"{target.linear.base_name}.weight")
        left = self._tensors.read(target.name(LORA_B)).mul_(target.scale)
        norms = row_norms(weight, left, self._tensors.read(target.name(LORA_A)))
        name = target.name(MAGNITUDE)
        return magnitude_scale(name, self._tensors.read(name), norms)

    def _base_bias(self, linear: Linear) -> Tensor:
        bias = self._base(f"{linear.base_name}.bias")
        return torch.zeros(linear.out_features) if bias is None else bias.float()

    def _bias(self, linear: Linear) -> Tensor:
        """The bias that this adapter has: its own where it is in the file, else the base's."""
        for part in (BASE_BIAS, BIAS):
            name = tensor_name(linear.path, part)
            if name in self._plan.biases:
                require_base(self._base, f"{linear.base_name}.bias")
                return self._tensors.read(name)
        return self._base_bias(linear)

    def _put(self, place: tuple[int, int], values: Tensor) -> None:
        start, length = place
        self.vectors[start : start + length] = values


def _unchanged(shapes: ModuleShapes, base: BaseTensors) -> Tensor:
    """Vectors that change nothing: scale 1, shift 0, the base's norms."""
    layout: VectorLayout = shapes.vectors
    vectors = torch.zeros(layout.size)
    for layer in range(shapes.num_layers):
        for group in shapes.groups:
            start, length = layout.scale(group, layer)
            vectors[start : start + length] = 1
        for norm in shapes.norms:
            start, length = layout.norm(norm.name, layer)
            name = f"model.layers.{layer}.{norm.module}.weight"
            vectors[start : start + length] = require_base(base, name).float()
    final = shapes.final_norm
    if final is not None:
        start, length = layout.norm(final.name)
        weight = require_base(base, f"model.{final.module}.weight")
        vectors[start : start + length] = weight.float()
    return vectors
