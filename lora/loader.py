"""From a PEFT directory to pages: every tensor is checked by the header before memory is taken."""

from __future__ import annotations

from pathlib import Path

import torch

from .adapter import AdapterConfig
from .base_tensors import BaseTensors, absent
from .dense_loader import read_vectors
from .errors import AdapterError
from .peft_names import LORA_A, LORA_B, split_name
from .shapes import PAGE_RANK, GroupShape, ModuleShapes
from .table_loader import read_tables
from .targets import AdapterPlan, LoraTarget, plan_adapter
from .tensor_files import AdapterTensors, open_tensors, require_finite
from .weights import AdapterWeights, DenseWeights, GroupWeights, pages_of_rank

__all__ = ["BaseTensors", "changed_modules", "load_adapter"]


def load_adapter(
    path: str | Path,
    config: AdapterConfig,
    shapes: ModuleShapes,
    base: BaseTensors | None = None,
    max_page_numbers: int | None = None,
) -> AdapterWeights:
    """Read an adapter's weights in float32: pages with the scale folded into B, and what is dense.

    ``base`` gives the base's own tensors, which DoRA, biases and tables are measured against.
    ``max_page_numbers`` bounds the numbers in its pages: one module of rank 512 is 32 pages over
    all layers, however small its file.
    Raises AdapterError that names the file, tensor or field: for a malformed file, for a tensor
    of another dtype or shape than the configuration and the base ask for, for one that is missing
    or that nothing asks for, and for values that are not finite.
    """
    base = base or absent
    with open_tensors(path) as tensors:
        plan = plan_adapter(tensors.shapes, config, shapes)
        patterns = " and rank_pattern" if config.rank_pattern else ""
        for name, shape in plan.tensor_shapes.items():
            tensors.check(name, shape, f"the base model and r{patterns} ask")
        _check_pages(plan, shapes, max_page_numbers)
        vectors = read_vectors(tensors, plan, shapes, base)
        tables = read_tables(tensors, plan.tables, shapes, base)
        dense = DenseWeights(vectors.vectors, vectors.affine_groups, vectors.norms, tables)
        resized = bool(plan.tables) and plan.tables.vocab_size != shapes.vocab_size
        return AdapterWeights(
            _read_groups(tensors, plan, shapes),
            dense if dense.num_bytes else None,
            plan.tables.vocab_size if resized else None,
        )


def changed_modules(path: str | Path) -> tuple[str, ...]:
    """Names of the modules that an adapter's file changes, without their places, sorted."""
    with open_tensors(path) as tensors:
        parts = [split_name(name) for name in tensors.shapes]
    return tuple(sorted({part[0].rpartition(".")[2] for part in parts if part is not None}))


def _check_pages(plan: AdapterPlan, shapes: ModuleShapes, most: int | None) -> None:
    ranks: dict[str, int] = {}
    for target in plan.targets:
        group = target.linear.group
        ranks[group] = max(ranks.get(group, 0), target.rank)
    total = sum(pages_of_rank(rank) * shapes.page_size(group) for group, rank in ranks.items())
    if most is not None and total > most:
        raise AdapterError(
            "r",
            f"its pages of 16 ranks hold {total} numbers, at most {most} can be had "
            "(--adapter-memory-gb)",
        )


def _read_groups(
    tensors: AdapterTensors, plan: AdapterPlan, shapes: ModuleShapes
) -> dict[str, GroupWeights]:
    groups = {}
    for name, shape in shapes.groups.items():
        of_group = [target for target in plan.targets if target.linear.group == name]
        if of_group:
            groups[name] = _read_group(tensors, of_group, shape, shapes.num_layers)
    return groups


def _read_group(
    tensors: AdapterTensors, targets: list[LoraTarget], shape: GroupShape, num_layers: int
) -> GroupWeights:
    """One group's pages; a fused module's A is repeated for each slice, its B split by slice."""
    num_pages = pages_of_rank(max(target.rank for target in targets))
    num_slices = len(shape.slices)
    a = torch.zeros(num_layers, num_pages, num_slices, PAGE_RANK, shape.in_features)
    b = torch.zeros(num_layers, num_pages * PAGE_RANK, shape.out_features)
    for target in targets:
        linear, index = target.linear, target.linear.slice_index
        slices = slice(None) if index is None else slice(index, index + 1)
        a_ranks = tensors.read(target.name(LORA_A))
        for page, ranks in enumerate(torch.split(a_ranks, PAGE_RANK)):
            a[linear.layer, page, slices, : len(ranks)] = ranks
        scaled = tensors.read(target.name(LORA_B)).mul_(target.scale)
        require_finite(target.name(LORA_B), scaled)
        end = linear.start + linear.out_features
        b[linear.layer, : target.rank, linear.start : end] = scaled.t()
    b_pages = b.view(num_layers, num_pages, PAGE_RANK, shape.out_features)
    return GroupWeights(a.flatten(2, 3), b_pages)
