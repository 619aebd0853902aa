"""What an engine takes from its machine unless told: device, dtype, size and depth of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .config import Dtype, EngineConfig
from .errors import EngineStartError

GPU_STEP_BUDGET, CPU_STEP_BUDGET = 2048, 512


def choose_device(wanted: str) -> torch.device:
    """The device asked for, or CUDA where there is one."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EngineStartError("device: cuda was asked for, but torch sees no CUDA device")
    return torch.device("cuda", 0) if available and wanted != "cpu" else torch.device("cpu")


def choose_dtype(wanted: Dtype, stored: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or by machine: see docs/decisions/ on dtypes.

    A GPU gets bfloat16 (float16 where the checkpoint is float16 or the card has no
    bfloat16). A CPU keeps half precision only where it multiplies bfloat16 natively.
    """
    if wanted != "auto":
        dtype = getattr(torch, wanted)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native and stored != "float16" else torch.float16
    return torch.bfloat16 if stored == "bfloat16" and _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def step_budget(config: EngineConfig, device: torch.device) -> int:
    """Tokens that one step may compute."""
    by_device = CPU_STEP_BUDGET if device.type == "cpu" else GPU_STEP_BUDGET
    return config.max_num_batched_tokens or by_device


def pipeline_depth(config: EngineConfig, device: torch.device) -> int:
    """Steps planned ahead of the one that runs: one on a GPU and none on a CPU, unless told."""
    told = config.async_scheduling
    return int(device.type == "cuda" if told is None else told)


@contextmanager
def told_of_memory() -> Iterator[None]:
    """Raises EngineStartError, in one line, for what a GPU has no memory for."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0].partition(" If reserved")[0]
        raise EngineStartError(f"device: {reason}") from error
