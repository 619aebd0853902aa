"""What an adapter takes, worked out once from its formatted file's header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .formatted import FormattedHeader
from .weights import DenseWeights


@dataclass(frozen=True, slots=True)
class Footprint:
    """Pages by module group, what is dense (without numbers), and bytes on device and host."""

    num_pages: Mapping[str, int]
    dense: DenseWeights | None
    num_bytes: int
    host_bytes: int

    @classmethod
    def of(cls, header: FormattedHeader) -> Footprint:
        """That of a formatted file."""
        shapes = header.shapes
        return cls(shapes.num_pages, shapes.dense, shapes.num_bytes, header.num_bytes)

    @property
    def dense_bytes(self) -> int:
        """Bytes of what is dense."""
        return 0 if self.dense is None else self.dense.num_bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """What several adapters take together: all that the others can't have."""

    num_pages: Mapping[str, int]
    dense_bytes: int

    @classmethod
    def by(cls, footprints: Iterable[Footprint]) -> Kept:
        """The sum of these."""
        num_pages: dict[str, int] = {}
        dense_bytes = 0
        for footprint in footprints:
            dense_bytes += footprint.dense_bytes
            for name, count in footprint.num_pages.items():
                num_pages[name] = num_pages.get(name, 0) + count
        return cls(num_pages, dense_bytes)
