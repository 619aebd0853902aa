"""How much memory there is, and how many KV blocks go into it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .blocks import NUM_RESERVED_BLOCKS
from .config import EngineConfig
from .errors import EngineStartError

GIB = 1024**3
MIB = 1024**2
CPU_SHARE = 0.25
"""Of the machine's memory, what a CPU engine takes for KV unless told."""


def machine_memory(cgroup_limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory this process may use: the machine's, or its control group's if less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(cgroup_limit.read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return total


def kv_budget(config: EngineConfig, device: torch.device, wanted: int) -> int:
    """Bytes for the KV pool; ``wanted`` is what ``max_num_seqs`` full sequences need.

    On a GPU the weights are loaded and a largest step has run when this is asked, so the
    allocator's peak is what a step takes beside the pool.
    """
    if config.kv_cache_gb is not None:
        return _stated_budget(config.kv_cache_gb, device)
    if device.type == "cpu":
        return min(wanted, int(machine_memory() * CPU_SHARE))
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    peak = torch.cuda.max_memory_allocated(device)
    return int(total * config.gpu_memory_utilization) - others - peak


def _stated_budget(kv_cache_gb: float, device: torch.device) -> int:
    """What was asked for, if the memory is there: a CPU would only find out under load."""
    budget = int(kv_cache_gb * GIB)
    on_cpu = device.type == "cpu"
    available = machine_memory() if on_cpu else torch.cuda.mem_get_info(device)[0]
    if budget > available:
        raise EngineStartError(
            f"kv_cache_gb: {kv_cache_gb:g} is more than the {size_text(available)} there is"
        )
    return budget


def host_blocks_for(kv_offload_gb: float, block_bytes: int) -> int:
    """Blocks of host memory for KV that leaves the pool; 0 for a ``kv_offload_gb`` of 0.

    Raises EngineStartError for more than the machine has, and for too little to hold a block.
    """
    budget, available = int(kv_offload_gb * GIB), machine_memory()
    if budget > available:
        raise EngineStartError(
            f"kv_offload_gb: {kv_offload_gb:g} is more than the {size_text(available)} there is"
        )
    if kv_offload_gb and budget < block_bytes:
        raise EngineStartError(
            f"kv_offload_gb: {kv_offload_gb:g} is less than one block, {size_text(block_bytes)}"
        )
    return budget // block_bytes


def size_text(num_bytes: int) -> str:
    """A number of bytes for a person."""
    unit, name = (GIB, "GiB") if num_bytes >= GIB else (MIB, "MiB")
    return f"{num_bytes / unit:.3g} {name}"


def num_blocks_for(budget: int, block_bytes: int, block_size: int, max_model_len: int) -> int:
    """Blocks that fit in ``budget`` bytes, the reserved ones among them.

    Raises EngineStartError when one sequence of ``max_model_len`` tokens would not fit.
    """
    num_blocks = budget // block_bytes
    needed = -(-max_model_len // block_size) + NUM_RESERVED_BLOCKS
    if num_blocks < needed:
        fits = max(0, (num_blocks - NUM_RESERVED_BLOCKS) * block_size)
        raise EngineStartError(
            f"the KV cache of {size_text(budget)} holds {fits} tokens, fewer than "
            f"max_model_len {max_model_len}, which needs {size_text(needed * block_bytes)}: "
            f"raise kv_cache_gb (or gpu_memory_utilization) or lower max_model_len"
        )
    return num_blocks
