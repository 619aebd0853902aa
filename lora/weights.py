"""An adapter's weights, formatted in the pages that the bank stores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import AdapterError
from .shapes import PAGE_RANK


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """One module group of an adapter in its pages, zero where a slice or a layer has less.

    a: [num_layers, num_pages, num_slices * 16, in_features],
    b: [num_layers, num_pages, 16, out_features] with the scale folded in.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def num_pages(self) -> int:
        """Pages of 16 ranks that this group takes."""
        return self.a.shape[1]

    def as_dtype(self, name: str, dtype: torch.dtype) -> GroupWeights:
        """The same in another dtype; raises AdapterError where a value is too large for it."""
        if self.a.numel() and not dtype == self.a.dtype == self.b.dtype:
            largest = max(self.a.abs().max().item(), self.b.abs().max().item())
            if largest > torch.finfo(dtype).max:
                raise AdapterError(name, f"holds {largest:.3g}, too large for {dtype}")
        return GroupWeights(self.a.to(dtype), self.b.to(dtype))

    def pinned(self) -> GroupWeights:
        """A copy in memory that a GPU copies from without waiting."""
        return GroupWeights(self.a.pin_memory(), self.b.pin_memory())


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The module groups that an adapter changes, by group name."""

    groups: dict[str, GroupWeights]

    @property
    def num_pages(self) -> dict[str, int]:
        """Pages that each group takes."""
        return {name: group.num_pages for name, group in self.groups.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(group.a.nbytes + group.b.nbytes for group in self.groups.values())

    def as_dtype(self, dtype: torch.dtype) -> AdapterWeights:
        """The same in another dtype; raises AdapterError where a value is too large for it."""
        return AdapterWeights(
            {name: group.as_dtype(name, dtype) for name, group in self.groups.items()}
        )

    def pinned(self) -> AdapterWeights:
        """A copy in memory that a GPU copies from without waiting."""
        return AdapterWeights({name: group.pinned() for name, group in self.groups.items()})


def pages_of_rank(rank: int) -> int:
    """Pages that hold ``rank`` ranks."""
    return -(-rank // PAGE_RANK)
