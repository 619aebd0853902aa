"""From a PEFT directory to pages: every tensor is checked by the header before memory is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .adapter import AdapterConfig
from .errors import AdapterError
from .files import WEIGHTS_FILE, weights_file
from .shapes import PAGE_RANK, GroupShape, ModuleShapes
from .targets import LoraTarget, match_targets
from .weights import AdapterWeights, GroupWeights, pages_of_rank

DTYPES = ("F32", "F16", "BF16")
MAX_HEADER_BYTES = 16 << 20


def load_adapter(path: str | Path, config: AdapterConfig, shapes: ModuleShapes) -> AdapterWeights:
    """Read an adapter's weights into float32 pages, the scale folded into B.

    Raises AdapterError that names the file, tensor or field: for a malformed file, for a tensor
    of another dtype or shape than the configuration and the base ask for, for one that is missing
    or that nothing asks for, and for values that are not finite.
    """
    file = weights_file(path)
    _check_header_size(file)
    try:
        with safe_open(str(file), framework="pt") as tensors:
            targets = match_targets(tensors.keys(), config, shapes)
            for target in targets:
                for name, shape in target.tensor_shapes.items():
                    _check_tensor(name, shape, tensors.get_slice(name), config)
            return _read(tensors, targets, shapes)
    except (SafetensorError, OSError) as error:
        raise AdapterError(WEIGHTS_FILE, f"is not a whole safetensors file: {error}") from None


def _check_header_size(file: Path) -> None:
    """The header is parsed in memory, so its length is judged first."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > MAX_HEADER_BYTES or size + 8 > file.stat().st_size:
        raise AdapterError(
            WEIGHTS_FILE, f"claims a header of {size} bytes; truncated, or not a safetensors file"
        )


def _check_tensor(name: str, shape: tuple[int, int], header: Any, config: AdapterConfig) -> None:
    dtype = header.get_dtype()
    if dtype not in DTYPES:
        raise AdapterError(name, f"has dtype {dtype}; allowed: {', '.join(DTYPES)}")
    if tuple(header.get_shape()) != shape:
        patterns = " and rank_pattern" if config.rank_pattern else ""
        raise AdapterError(
            name,
            f"has shape {list(header.get_shape())}; the base model and r{patterns} "
            f"ask for {list(shape)}",
        )


def _read(tensors: Any, targets: list[LoraTarget], shapes: ModuleShapes) -> AdapterWeights:
    groups = {}
    for name, shape in shapes.groups.items():
        of_group = [target for target in targets if target.group == name]
        if of_group:
            groups[name] = _read_group(tensors, of_group, shape, shapes.num_layers)
    return AdapterWeights(groups)


def _read_group(
    tensors: Any, targets: list[LoraTarget], shape: GroupShape, num_layers: int
) -> GroupWeights:
    """One group's pages; a fused module's A is repeated for each slice, its B split by slice."""
    num_pages = pages_of_rank(max(target.rank for target in targets))
    num_slices = len(shape.slices)
    a = torch.zeros(num_layers, num_pages, num_slices, PAGE_RANK, shape.in_features)
    b = torch.zeros(num_layers, num_pages * PAGE_RANK, shape.out_features)
    starts = [sum(shape.slice_sizes[:index]) for index in range(num_slices)]
    for target in targets:
        layer, rank, index = target.layer, target.rank, target.slice_index
        slices = slice(None) if index is None else slice(index, index + 1)
        start = 0 if index is None else starts[index]
        for page, ranks in enumerate(torch.split(_tensor(tensors, target.a_name), PAGE_RANK)):
            a[layer, page, slices, : len(ranks)] = ranks
        scaled = _tensor(tensors, target.b_name).mul_(target.scale)
        _require_finite(target.b_name, scaled)
        b[layer, :rank, start : start + target.out_features] = scaled.t()
    b_pages = b.view(num_layers, num_pages, PAGE_RANK, shape.out_features)
    return GroupWeights(a.flatten(2, 3), b_pages)


def _tensor(tensors: Any, name: str) -> torch.Tensor:
    """A float32 copy of a tensor."""
    tensor: torch.Tensor = tensors.get_tensor(name)
    _require_finite(name, tensor)
    return tensor.to(torch.float32, copy=True)


def _require_finite(name: str, tensor: torch.Tensor) -> None:
    if not tensor.isfinite().all():
        raise AdapterError(name, "holds NaN or infinity")
