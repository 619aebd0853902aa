"""What differs between a GPU and the host that stands in for one: time and memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from branchline.engine.graph_recorder import CudaRecorder
from branchline.kernels.backend import interprets

WARMUPS = 3


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each repetition, back to back."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all repetitions."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """How far the medians of both halves are apart, of the whole's."""
        half = max(1, len(self.seconds) // 2)
        return abs(median(self.seconds[:half]) - median(self.seconds[-half:])) / self.median

    def percentile(self, share: float) -> float:
        """The repetition that ``share`` of all take no longer than."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def device_of(name: str) -> torch.device:
    """The one that is checked: the first GPU, or the host."""
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def timed(
    device: torch.device, run: Callable[[], object], repeats: int = 20, warmups: int = WARMUPS
) -> Timings:
    """Run again and again without waiting in between; the device's own time on a GPU."""
    for _ in range(1 if interprets() else warmups):
        run()
    synchronize(device)
    marks = [mark(device)]
    for _ in range(repeats):
        run()
        marks.append(mark(device))
    synchronize(device)
    return Timings(tuple(between(a, b) for a, b in pairwise(marks)))


def graphed(device: torch.device, run: Callable[[], None]) -> Callable[[], None]:
    """``run``, recorded: replaying it costs the host next to nothing."""
    if device.type != "cuda":
        return run
    return CudaRecorder(device).record(run)


Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """Now, on the device's current stream."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between(first: Mark, second: Mark) -> float:
    """Seconds between two marks that the device has passed."""
    if isinstance(first, float) or isinstance(second, float):
        assert isinstance(first, float)
        assert isinstance(second, float)
        return second - first
    return float(first.elapsed_time(second)) / 1000


def synchronize(device: torch.device) -> None:
    """Wait for all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what nobody holds: engines, whose parts know one another, and their memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory that could be had now; a host is said to have little, so that trials stay small."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 28
