"""An adapter's weights, formatted in the pages that the bank stores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The module groups that an adapter changes, by group name."""

    groups: dict[str, GroupWeights]

    @property
    def num_pages(self) -> dict[str, int]:
        """Pages that each group takes."""
        return {name: group.num_pages for name, group in self.groups.items()}


def pages_of_rank(rank: int) -> int:
    """Pages that hold ``rank`` ranks."""
    return -(-rank // PAGE_RANK)
