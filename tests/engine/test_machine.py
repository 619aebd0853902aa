"""What is taken from the machine, and what is said when it has too little."""

from __future__ import annotations

import pytest
import torch

from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineStartError
from branchline.engine.machine import (
    CPU_STEP_BUDGET,
    GPU_STEP_BUDGET,
    pipeline_depth,
    step_budget,
    told_of_memory,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("told", "on_cpu", "on_gpu"), [(None, 0, 1), (True, 1, 1), (False, 0, 0)])
def test_steps_are_planned_ahead_on_a_gpu_unless_told(
    told: bool | None, on_cpu: int, on_gpu: int
) -> None:
    config = EngineConfig(model="m", async_scheduling=told)
    assert pipeline_depth(config, CPU) == on_cpu
    assert pipeline_depth(config, GPU) == on_gpu


def test_a_gpus_steps_are_larger() -> None:
    config = EngineConfig(model="m")
    assert (step_budget(config, CPU), step_budget(config, GPU)) == (
        CPU_STEP_BUDGET,
        GPU_STEP_BUDGET,
    )
    assert step_budget(EngineConfig(model="m", max_num_batched_tokens=7), GPU) == 7


def test_too_little_memory_is_one_line() -> None:
    words = "CUDA out of memory. Tried to allocate 2.00 GiB. If reserved but unallocated\nmemory is"
    with pytest.raises(EngineStartError) as caught, told_of_memory():
        raise torch.OutOfMemoryError(words)
    assert str(caught.value) == "device: CUDA out of memory. Tried to allocate 2.00 GiB."
    with pytest.raises(RuntimeError, match="another"), told_of_memory():
        raise RuntimeError("another")
