"""Index arrays of a step: worked out on the CPU, sent to the device in one copy."""

from __future__ import annotations

import numpy as np
import torch

from ..kernels.ops import Selection

Array = np.ndarray[tuple[int], np.dtype[np.int64]]


class Indices:
    """Index arrays of a step; for a device they are packed, and one copy takes all of them."""

    def __init__(self, capacity: int, device: torch.device, packed: bool | None = None) -> None:
        self._packed = device.type != "cpu" if packed is None else packed
        size = capacity if self._packed else 0
        self._host = torch.empty(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.empty(size, dtype=torch.int64, device=device)
        self._used = 0

    def put(self, array: Array) -> torch.Tensor:
        """Where the array will be on the device after ``send``."""
        if not self._packed:
            return torch.from_numpy(array)
        start, self._used = self._used, self._used + array.size
        assert self._used <= len(self._host), "the capacity is an upper bound"
        self._host[start : self._used] = torch.from_numpy(array)
        return self._device[start : self._used]

    def select(self, array: Array) -> Selection:
        """The rows of ``array`` [n >= 1]: a span if that is what they are."""
        first, stop = int(array[0]), int(array[-1]) + 1
        return Selection(first, stop, None if is_span(array) else self.put(array))

    def send(self) -> None:
        """Copy all that was put to the device."""
        if self._used:
            self._device[: self._used].copy_(self._host[: self._used], non_blocking=True)


def spans(starts: Array, lengths: Array) -> Array:
    """start, start + 1, ... for ``length`` numbers, of each span in turn."""
    before = np.cumsum(lengths) - lengths
    numbers: Array = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return numbers


def is_span(array: Array) -> bool:
    """Whether each number is its predecessor's successor."""
    return bool((np.diff(array) == 1).all())
