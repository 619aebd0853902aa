"""How much memory adapters get, in each tier, and how many pages of ranks that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..lora.fp8_pages import choose_page_dtype, page_bytes
from ..lora.shapes import ModuleShapes
from .config import EngineConfig
from .errors import EngineStartError
from .memory import GIB, machine_memory, size_text

DEFAULT_MAX_LORAS = 256
MAX_PAGES = 4096
"""Pages of a group, at most: ranks of 65,536 together."""

GPU_PAGES, GPU_DENSE = 0.08, 0.02
CPU_PAGES, CPU_DENSE, HOST = 1 / 16, 1 / 32, 1 / 8
MAX_CPU_PAGES, MAX_CPU_DENSE, MAX_HOST = GIB, GIB // 2, 8 * GIB
"""Shares of the memory that adapters get unless told, and their most on a CPU (when used).

Of a GPU, shares of what ``gpu_memory_utilization`` gives us.
"""


@dataclass(frozen=True, slots=True)
class AdapterBudget:
    """``num_pages`` of every module group; bytes of what is dense, and of host memory.

    ``page_dtype`` is what pages are kept in.
    """

    num_slots: int
    num_pages: int
    dense_bytes: int
    host_bytes: int
    page_dtype: torch.dtype


def adapter_budget(
    config: EngineConfig, shapes: ModuleShapes, dtype: torch.dtype, device: torch.device
) -> AdapterBudget:
    """What the configuration gives, or the machine; raises EngineStartError for too much."""
    num_slots = config.max_loras or DEFAULT_MAX_LORAS
    memory = machine_memory()
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        ours = total * config.gpu_memory_utilization
        pages, dense = int(ours * GPU_PAGES), int(ours * GPU_DENSE)
    else:
        total = memory
        pages = min(int(memory * CPU_PAGES), MAX_CPU_PAGES)
        dense = min(int(memory * CPU_DENSE), MAX_CPU_DENSE)
    page_dtype = choose_page_dtype(config.adapter_dtype, dtype)
    all_groups = sum(page_bytes(shapes, name, page_dtype) for name in shapes.groups)
    pages = _stated("adapter_memory_gb", config.adapter_memory_gb, pages, total)
    if 0 < pages < all_groups:
        raise EngineStartError(
            f"adapter_memory_gb: {size_text(pages)} is less than a page of 16 ranks of every "
            f"module, {size_text(all_groups)}"
        )
    host = min(int(memory * HOST), MAX_HOST)
    return AdapterBudget(
        num_slots=num_slots,
        num_pages=min(pages // all_groups, MAX_PAGES),
        dense_bytes=_stated("adapter_dense_gb", config.adapter_dense_gb, dense, total),
        host_bytes=_stated("adapter_host_gb", config.adapter_host_gb, host, memory),
        page_dtype=page_dtype,
    )


def _stated(name: str, gigabytes: float | None, otherwise: int, available: int) -> int:
    if gigabytes is None:
        return otherwise
    if gigabytes * GIB > available:
        raise EngineStartError(
            f"{name}: {gigabytes:g} is more than the {size_text(available)} there is"
        )
    return int(gigabytes * GIB)
