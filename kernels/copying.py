"""Copies between host and device that run beside the steps, one after the other."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_NICENESS = 10
_MEMORY = 0.8
_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class CopyThread:
    """One thread that copies; on a GPU with a stream of its own, in order either way.

    A job's future is done when what it copied is there: on a GPU the thread, and nobody else, has
    waited for the stream. So whatever is launched after ``done()`` may use it.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._executor = ThreadPoolExecutor(1, name, initializer=_step_aside)
        self._num_bytes = 0.0
        self._seconds = 0.0
        self.bytes_per_second: float | None = None

    def submit(self, job: Callable[[], int], *, after_launched: bool = True) -> Future[int]:
        """Run ``job``, which returns the number of bytes it copied; what it raises is the future's.

        It starts when all that the caller has launched on its stream has finished, unless nothing
        launched touches what it copies (``after_launched`` False). Nothing is raised here: after
        ``close`` the future has failed already.
        """
        try:
            launched = self._launched() if after_launched else None
            return self._executor.submit(self._run, job, launched)
        except RuntimeError as error:
            failed: Future[int] = Future()
            failed.set_exception(error)
            return failed

    def _launched(self) -> torch.cuda.Event | None:
        """Reached when the steps launched so far have finished."""
        if self._stream is None:
            return None
        return _record(torch.cuda.current_stream(self._device))

    def _run(self, job: Callable[[], int], launched: torch.cuda.Event | None) -> int:
        if launched is not None:
            launched.synchronize()
        started = time.perf_counter()
        num_bytes = job() if self._stream is None else self._run_on(self._stream, job)
        self._measure(num_bytes, time.perf_counter() - started)
        return num_bytes

    def _run_on(self, stream: torch.cuda.Stream, job: Callable[[], int]) -> int:
        try:
            with torch.cuda.stream(stream):
                return job()
        finally:  # a job that failed midway has copies under way too
            _record(stream).synchronize()

    def _measure(self, num_bytes: int, seconds: float) -> None:
        """Older jobs count less and less, small ones less than large ones."""
        if num_bytes:
            self._num_bytes = _MEMORY * self._num_bytes + num_bytes
            self._seconds = _MEMORY * self._seconds + seconds
            self.bytes_per_second = self._num_bytes / max(self._seconds, 1e-9)

    def close(self) -> None:
        """Let the job that runs finish and cancel those behind it."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _record(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event behind all that is on the stream now; waiting for it sleeps."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def _step_aside() -> None:
    """Give way to the step loop where there are few cores; only Linux ranks single threads."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def copy_on_one_core(target: Tensor, source: Tensor) -> None:
    """``target.copy_(source)`` for CPU tensors alike in shape and dtype, views included.

    PyTorch would start as many threads again as the steps compute with, and these slow each other
    down for good once there are more of them than cores. NumPy copies on the thread that asks.
    """
    assert target.dtype == source.dtype, f"{target.dtype} is not {source.dtype}"
    assert target.shape == source.shape, f"{target.shape} is not {source.shape}"
    as_integers = _SAME_SIZE[target.itemsize]
    np.copyto(target.view(as_integers).numpy(), source.view(as_integers).numpy())


def pin_host(tensor: Tensor) -> None:
    """Lock host memory, so that copies to a GPU need no other; exactly as much as there is.

    PyTorch's own pinned memory is rounded up to a power of two, which may be twice as much. Raises
    RuntimeError where so much can't be pinned.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    portable = 1
    code = int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, portable))
    if code:
        raise RuntimeError(f"{tensor.nbytes} bytes can't be pinned, CUDA error {code}")


def unpin_host(tensor: Tensor) -> None:
    """Undo ``pin_host``; nothing copies from the memory any more."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostUnregister(tensor.data_ptr()))
    if code:
        logger.warning("host memory could not be unpinned, CUDA error %d", code)
