"""Tensors of a mapped file into parameters: on a GPU through two pinned buffers, by turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import ops
from .errors import EngineStartError

STAGING_BYTES = 64 << 20
"""Of each of the two buffers."""

OnBytes = Callable[[int], None]


class WeightCopier(Protocol):
    """Fills parameters, whatever their dtype."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """``target`` gets the values of ``source``, of its shape; both contiguous."""


class DirectCopier:
    """Copies within host memory."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy at once."""
        target.copy_(source)
        self._on_bytes(source.nbytes)


class Copying(Protocol):
    """A copy to the device that is under way."""

    def synchronize(self) -> None:
        """Wait for its end."""


Launch = Callable[[Tensor, Tensor], Copying]


class StagedCopier:
    """Copies to a device piece by piece, reading one while the piece before is on its way.

    ``buffers`` are uint8 on the host. ``launch`` begins the copy of a piece of one to a part of a
    parameter; a buffer is written again when its last copy has ended.
    """

    def __init__(self, buffers: Sequence[Tensor], launch: Launch, on_bytes: OnBytes) -> None:
        self._turns = cycle(range(len(buffers)))
        self._buffers = buffers
        self._launch = launch
        self._on_bytes = on_bytes
        self._under_way: dict[int, Copying] = {}

    def copy(self, target: Tensor, source: Tensor) -> None:
        """On return all has been read; what was begun ends before later work on the stream."""
        flat_target, flat_source = target.view(-1), source.view(-1)
        most = self._buffers[0].nbytes // source.itemsize
        for start in range(0, source.numel(), most):
            piece = flat_source[start : start + most]
            turn = next(self._turns)
            if turn in self._under_way:
                self._under_way[turn].synchronize()
            staged = self._buffers[turn][: piece.nbytes].view(piece.dtype)
            staged.copy_(piece)
            self._under_way[turn] = self._launch(flat_target[start : start + most], staged)
            self._on_bytes(piece.nbytes)

    def finish(self) -> None:
        """Wait for what is under way."""
        for copying in self._under_way.values():
            copying.synchronize()
        self._under_way.clear()


@contextmanager
def open_copier(device: torch.device, on_bytes: OnBytes) -> Iterator[WeightCopier]:
    """Copies to ``device``, all of them done in the end; raises EngineStartError.

    ``on_bytes`` is told how many bytes more have been read.
    """
    if device.type != "cuda":
        yield DirectCopier(on_bytes)
        return
    with pinned_buffers(2, STAGING_BYTES) as buffers:
        copier = StagedCopier(buffers, launch_on_gpu, on_bytes)
        try:
            yield copier
        finally:
            copier.finish()


@contextmanager
def pinned_buffers(count: int, num_bytes: int) -> Iterator[list[Tensor]]:
    """Host memory that a GPU reads by itself; one piece, for no page can be pinned twice."""
    memory = torch.empty(count * num_bytes, dtype=torch.uint8)
    try:
        ops.pin_host(memory)
    except RuntimeError as error:
        raise EngineStartError(f"loading weights: {error}") from error
    try:
        yield list(memory.view(count, num_bytes))
    finally:
        ops.unpin_host(memory)


def launch_on_gpu(target: Tensor, staged: Tensor) -> Copying:
    """The copy and, on the device, the conversion to the dtype of ``target``.

    On the current stream: there it is behind whatever had the target's memory before, and before
    whatever reads the target.
    """
    if target.dtype == staged.dtype:
        target.copy_(staged, non_blocking=True)
    else:
        target.copy_(staged.to(target.device, non_blocking=True))
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(target.device))
    return copied
