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
SPARE_BYTES = 512 * MIB
"""On a GPU, for what is made after the pool: staging of copies, and the allocator's holes."""
GRAPH_BYTES = GIB
"""What the driver keeps of all captured graphs, at most."""


def machine_memory(cgroup_limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory this process may use: the machine's, or its control group's if less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(cgroup_limit.read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return total


def kv_budget(config: EngineConfig, device: torch.device, wanted: int, step_bytes: int = 0) -> int:
    """Bytes for the KV pool; ``wanted`` is what ``max_num_seqs`` full sequences need.

    On a GPU all else is there when this is asked, and the largest step has run, which took
    ``step_bytes`` beside it. Raises EngineStartError for a ``kv_cache_gb`` that is more than can
    be had: a CPU would only find out under load.
    """
    stated = config.kv_cache_gb
    if device.type == "cpu":
        available = machine_memory()
        otherwise = min(wanted, int(available * config.cpu_memory_utilization))
    else:
        captures = not config.enforce_eager
        available = gpu_room(device, 1.0, step_bytes, captures)
        otherwise = gpu_room(device, config.gpu_memory_utilization, step_bytes, captures)
    if stated is None:
        return otherwise
    if stated * GIB > available:
        raise EngineStartError(
            f"kv_cache_gb: {stated:g} is more than the {size_text(available)} there is"
        )
    return int(stated * GIB)


def gpu_room(device: torch.device, share: float, step_bytes: int, captures: bool) -> int:
    """Bytes within ``share`` of a GPU, beside what is there and what steps take.

    Others on it are its other processes, CUDA itself and the code of kernels. Captured graphs
    have memory of their own: a largest step again at most, and what the driver keeps of each.
    """
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    steps = step_bytes + SPARE_BYTES
    if captures:
        steps += step_bytes + GRAPH_BYTES
    there = torch.cuda.memory_allocated(device)
    return max(0, int(total * share) - others - there - steps)


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
            "raise kv_cache_gb (or gpu_memory_utilization, on a CPU cpu_memory_utilization) "
            "or lower max_model_len"
        )
    return num_blocks
