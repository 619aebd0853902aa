"""Zeroed pools that cost what is used of them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def clear_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A tensor of zeros; on a CPU the machine gives a page of it when it is first written.

    ``torch.zeros`` writes all of it, so that a pool takes its whole size from the start.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or num_bytes == 0:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(tuple(shape))
