"""Where an op's case runs, and how far what it gives is from the plain formula in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from branchline.kernels.backend import interprets

from .device import device_of
from .sections import Run

TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 2e-5}
DTYPES = tuple(TOLERANCES)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a case runs; ``draw`` rounds to the dtype first, so both sides see one input."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def pick(self, real: T, small: T, least: T | None = None) -> T:
        """A size: real ones on a GPU, small ones on a host, the least for an interpreter."""
        if self.device.type == "cuda":
            return real
        return least if least is not None and interprets() else small

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values on the device in the dtype."""
        values = torch.randn(*shape, generator=self.generator) * scale
        return values.to(self.device, self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Float32 values of [0, 1) on the device."""
        return torch.rand(*shape, generator=self.generator).to(self.device)

    def permutation(self, size: int) -> list[int]:
        """The numbers below ``size`` in random order."""
        numbers: list[int] = torch.randperm(size, generator=self.generator).tolist()
        return numbers


Case = Callable[[Bench], float]


def bench_for(device: torch.device, dtype: torch.dtype) -> Bench:
    """Every case begins with the same numbers."""
    return Bench(device, dtype, torch.Generator().manual_seed(0))


def wide(x: Tensor) -> Tensor:
    """The same values in float64."""
    return x.detach().double()


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude; infinite if not a number."""
    difference = (wide(actual) - expected).abs().max()
    value = float(difference / expected.abs().max().clamp(min=1e-6))
    return value if value == value else float("inf")


def poisoned(like: Tensor) -> Tensor:
    """Memory as of ``like``, in which what nobody writes is found."""
    return torch.full_like(like, float("nan"))


def check_cases(
    run: Run, cases: Mapping[str, Case], dtypes: Sequence[torch.dtype] = DTYPES
) -> None:
    """All cases in all dtypes, as long as there is time; one that raises is wrong."""
    device = device_of(run.options.device)
    for dtype in dtypes:
        for name, case in cases.items():
            if not run.has_time():
                run.note(f"out of time before {name}, {dtype}")
                return
            label = str(dtype).removeprefix("torch.")
            try:
                with torch.inference_mode():
                    value = case(bench_for(device, dtype))
            except Exception:
                run.failed(f"{name}, {label}")
            else:
                run.check(name, value, TOLERANCES[dtype], label)
