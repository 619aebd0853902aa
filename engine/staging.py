"""Small copies between host and device, through pinned memory, that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 16

Array = npt.NDArray[Any]


def send(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """The arrays on the device, in one copy; on the CPU they are the tensors' memory."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    if not any(array.size for array in arrays):
        return [torch.from_numpy(array).to(device) for array in arrays]  # nothing to copy
    return unpack(pack(arrays, pinned=True).to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[Array], pinned: bool) -> Tensor:
    """The bytes of all arrays [n] uint8, each at a multiple of 16."""
    starts = _starts(arrays)
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
    for array, start in zip(arrays, starts, strict=False):
        target = packed[start : start + array.nbytes].numpy().view(array.dtype)
        np.copyto(target.reshape(array.shape), array)
    return packed


def unpack(packed: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
    """Views of what ``pack`` made of the arrays, with their dtypes and shapes."""
    views = []
    for array, start in zip(arrays, _starts(arrays), strict=False):
        dtype = torch.from_numpy(array[:0]).dtype
        views.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
    return views


def _starts(arrays: Sequence[Array]) -> list[int]:
    sizes = (-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)
    return list(accumulate(sizes, initial=0))


class HostCopy:
    """A tensor on its way to the host, behind all that its stream has been given so far."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> list[float]:
        """Its values; waits for this copy and nothing launched later."""
        values: list[float] = self.array().tolist()
        return values

    def array(self) -> Array:
        """As ``read``, with its shape and dtype."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.numpy()
