"""The door to the LoRA ops: Triton's kernels take a step's packed work, the twins its routing."""

from __future__ import annotations

from torch import Tensor

from . import lora
from .backend import uses_kernels
from .lora import LoraRouting, LoraRun, LoraTiles, Selection
from .lora_work import LoraPlanes, LoraWork, as_routing
from .side_stream import beside

__all__ = [
    "LoraRouting",
    "LoraRun",
    "LoraTiles",
    "LoraWork",
    "Selection",
    "beside",
    "expand",
    "shrink",
    "uses_kernels",
    "write_expand",
]

Hidden = tuple[Tensor, ...] | LoraPlanes


def shrink(
    x: Tensor, a_pages: Tensor, routing: LoraRouting | LoraWork, scales: Tensor | None = None
) -> Hidden:
    """h = x A^T (* scales) in float32 for routed rows of x [T, K], in a form for ``expand``."""
    if isinstance(routing, LoraRouting):
        return lora.shrink(x, a_pages, routing, scales)
    if not uses_kernels(x):
        return lora.shrink(x, a_pages, as_routing(routing), scales)
    from .gpu.lora_shrink import shrink as kernel

    return kernel(x, a_pages, routing, scales)


def expand(
    hidden: Hidden,
    b_pages: Tensor,
    slice_sizes: tuple[int, ...],
    routing: LoraRouting | LoraWork,
    y: Tensor,
) -> None:
    """y[t, slice s] += h[t, slice s] B[slice s] on the routed rows of y [T, N]."""
    if isinstance(hidden, LoraPlanes):
        from .gpu.lora_expand import expand as kernel

        assert isinstance(routing, LoraWork)
        kernel(hidden, b_pages, slice_sizes, routing, y)
    else:
        plain = routing if isinstance(routing, LoraRouting) else as_routing(routing)
        lora.expand(hidden, b_pages, slice_sizes, plain, y)


def write_expand(
    hidden: Hidden,
    b_pages: Tensor,
    slice_sizes: tuple[int, ...],
    work: LoraWork,
    y: Tensor,
) -> None:
    """``expand`` that writes every row of y [T, N], base rows with zeros, and reads none of it."""
    assert work.whole
    if isinstance(hidden, LoraPlanes):
        from .gpu.lora_expand import expand as kernel

        kernel(hidden, b_pages, slice_sizes, work, y, add=False)
    else:
        lora.expand(hidden, b_pages, slice_sizes, as_routing(work), y.zero_())
