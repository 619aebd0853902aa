"""Records what a function launches on the device, to launch it again at once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch

NUM_WARM_UPS = 2
"""Runs before a recording: kernels are compiled in the first, the second is as any other."""

Launch = Callable[[], None]


class Recorder(Protocol):
    """Turns a function into one that does the same to the same memory again."""

    def record(self, run: Launch) -> Launch:
        """``run`` has been called when this returns; it must neither wait nor look at results."""


class CudaRecorder:
    """Records CUDA graphs; all of them take their memory from one pool.

    So no two may run at once, and what one leaves in the pool is gone when another has run:
    results that outlive it belong in memory of the caller's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Launch) -> Launch:
        """Warm ``run`` up beside the current stream, then record it there."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream), _no_collection():
            for _ in range(NUM_WARM_UPS):
                run()
            self._stream.synchronize()
            # Other threads may go on copying meanwhile: only this one's calls are recorded.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # which is about the same
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return graph.replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing device memory in the midst of a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
