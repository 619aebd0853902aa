"""An adapter's weights: pages of low-rank pairs for the bank, and what is dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import AdapterError
from .shapes import PAGE_RANK

FLOAT32_TABLES = frozenset({"embed_scale", "head_scale", "head_shift"})
INDEX_TABLES = frozenset({"embed_token_ids", "head_token_ids"})


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """One module group of an adapter in its pages, zero where a slice or a layer has less.

    a: [num_layers, num_pages, num_slices * 16, in_features],
    b: [num_layers, num_pages, 16, out_features] with the scale folded in,
    scales: [num_layers, num_pages, num_slices * 16] float32 for pages in 8 bits (``fp8_pages``).
    """

    a: Tensor
    b: Tensor
    scales: Tensor | None = None

    @property
    def num_pages(self) -> int:
        """Pages of 16 ranks that this group takes."""
        return self.a.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of its pages, with their scales."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.a.nbytes + self.b.nbytes + scales

    def as_dtype(self, name: str, dtype: torch.dtype) -> GroupWeights:
        """The same in another dtype; raises AdapterError where a value is too large for it."""
        assert self.scales is None, "pages in 8 bits stay as they are"
        return GroupWeights(_as_dtype(name, self.a, dtype), _as_dtype(name, self.b, dtype))


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """What of an adapter is no pair of low rank.

    ``vectors`` [layout.size] float32, by ``shapes.VectorLayout``; None if the adapter has none.
    ``affine_groups`` are the module groups with a scale or shift of its own, ``norms`` the norms.

    ``tables`` are at most these (V is the adapter's vocabulary, r its rank there, n tokens):

    - ``embed`` [V, H], ``head`` [V, H]: a whole embedding or output layer of its own
    - ``embed_a`` [V, r], ``embed_b`` [r, H]: a pair on the embedding, A transposed, scale in B
    - ``head_a`` [r, H], ``head_b`` [r, V]: a pair on the output layer, B transposed, scale in it
    - ``embed_scale`` [H], ``head_scale`` [V], ``head_shift`` [V] float32: as for the groups
    - ``embed_token_ids`` [n] int64, ascending, ``embed_tokens`` [n, H]: rows of the embedding
    - ``head_token_ids`` [n] int64, ascending, ``head_tokens`` [n, H]: rows of the output layer

    They apply in the order: own matrix, own rows, pair, scale and shift.
    """

    vectors: Tensor | None = None
    affine_groups: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()
    tables: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it."""
        vectors = 0 if self.vectors is None else self.vectors.nbytes
        return vectors + sum(table.nbytes for table in self.tables.values())

    def as_dtype(self, dtype: torch.dtype) -> DenseWeights:
        """Tables in another dtype, but those that are float32 or ids for good."""
        kept = FLOAT32_TABLES | INDEX_TABLES
        tables = {
            name: table if name in kept else _as_dtype(name, table, dtype)
            for name, table in self.tables.items()
        }
        return DenseWeights(self.vectors, self.affine_groups, self.norms, tables)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All that an adapter brings; ``vocab_size`` None: it has the base model's tokens."""

    groups: dict[str, GroupWeights]
    dense: DenseWeights | None = None
    vocab_size: int | None = None

    @property
    def num_pages(self) -> dict[str, int]:
        """Pages that each group takes."""
        return {name: group.num_pages for name, group in self.groups.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages and of what is dense."""
        pages = sum(group.num_bytes for group in self.groups.values())
        return pages + (0 if self.dense is None else self.dense.num_bytes)

    def as_dtype(self, dtype: torch.dtype) -> AdapterWeights:
        """The same in another dtype; raises AdapterError where a value is too large for it."""
        groups = {name: group.as_dtype(name, dtype) for name, group in self.groups.items()}
        dense = None if self.dense is None else self.dense.as_dtype(dtype)
        return AdapterWeights(groups, dense, self.vocab_size)


def pages_of_rank(rank: int) -> int:
    """Pages that hold ``rank`` ranks."""
    return -(-rank // PAGE_RANK)


def _as_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.numel() and tensor.dtype != dtype:
        largest = tensor.abs().max().item()
        if largest > torch.finfo(dtype).max:
            raise AdapterError(name, f"holds {largest:.3g}, too large for {dtype}")
    return tensor.to(dtype)
