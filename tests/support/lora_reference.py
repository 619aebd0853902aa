"""LoRA computed densely in float64, row by row: what any kernel or mapping must come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from branchline.lora.shapes import GroupShape, ModuleShapes
from branchline.lora.weights import AdapterWeights, GroupWeights, pages_of_rank


def random_weights(
    shapes: ModuleShapes, ranks: Mapping[str, int], generator: torch.Generator
) -> AdapterWeights:
    """An adapter with these ranks by group; the rest of its pages is zero, as the loader has it."""
    return AdapterWeights(
        {
            name: _random_group(shapes.groups[name], shapes.num_layers, rank, generator)
            for name, rank in ranks.items()
        }
    )


def _random_group(
    shape: GroupShape, num_layers: int, rank: int, generator: torch.Generator
) -> GroupWeights:
    pages, slices = pages_of_rank(rank), len(shape.slices)
    used = (torch.arange(pages * 16) < rank).float().view(pages, 16)
    a = torch.randn(num_layers, pages, slices, 16, shape.in_features, generator=generator)
    b = torch.randn(num_layers, pages, 16, shape.out_features, generator=generator)
    a = a * used[:, None, :, None] / shape.in_features**0.5
    b = b * used[:, :, None] / rank**0.5
    return GroupWeights(a.flatten(2, 3), b)


def dense_delta(group: GroupWeights, layer: int, slice_sizes: Sequence[int]) -> Tensor:
    """B A of one layer in float64, [out_features, in_features]."""
    wide = group.a[layer].double()
    if group.scales is not None:
        wide *= group.scales[layer].double().unsqueeze(-1)
    a = wide.unflatten(1, (len(slice_sizes), 16)).transpose(0, 1).flatten(1, 2)
    b = group.b[layer].double().flatten(0, 1)
    columns = b.split(list(slice_sizes), dim=1)
    return torch.cat([column.t() @ a[index] for index, column in enumerate(columns)])


def dense_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_weights: Sequence[GroupWeights | None],
    layer: int,
    slice_sizes: Sequence[int],
) -> Tensor:
    """The layer's output in float64; ``row_weights`` says what each row of x [T, K] carries."""
    wide = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    deltas: dict[int, Tensor] = {}
    for row, group in enumerate(row_weights):
        if group is not None:
            if id(group) not in deltas:
                deltas[id(group)] = dense_delta(group, layer, slice_sizes)
            wide[row] += deltas[id(group)] @ x[row].double()
    return wide
