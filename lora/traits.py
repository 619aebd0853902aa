"""What the scheduler has to know of an adapter version: its costs, and when it applies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .shapes import PAGE_RANK


@dataclass(frozen=True, slots=True)
class AdapterTraits:
    """One adapter version, as a schedule sees it.

    ``rank`` is what the version counts in a step's budget for the sum of ranks: the rank of its
    widest module group in whole pages, because a step reads whole pages (so ranks 1 to 16 count
    16, and 20 counts 32). ``num_bytes`` is its size on the device. ``invocation_tokens`` are those
    of an activated LoRA, None for one that applies to every token. ``is_dense``: it brings more
    than low-rank pairs, which apply to every token of even an activated one. ``vocab_size`` is
    its own, None if that is the base model's.
    """

    rank: int
    num_bytes: int
    invocation_tokens: tuple[int, ...] | None = None
    is_dense: bool = False
    vocab_size: int | None = None

    @classmethod
    def from_pages(
        cls, num_pages: Mapping[str, int], num_bytes: int, **others: Any
    ) -> AdapterTraits:
        """For a version with ``num_pages`` pages of each group; ``others`` are the other fields."""
        rank = PAGE_RANK * max(num_pages.values(), default=0)
        return cls(rank=rank, num_bytes=num_bytes, **others)
