"""Device storage of what is dense in adapters: one arena, a stretch for each part.

    | vectors | vectors |  free        | vectors |      free       | head     | embed_a | embed |
    0         1 row     2              3                                    the end, tables last

An adapter's vectors lie at a multiple of their own size, so that the arena is also a matrix of
float32 with a row for each adapter, and a step gathers the rows of many adapters at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import ops
from .errors import AdapterError
from .extents import Extents
from .shapes import ModuleShapes
from .weights import FLOAT32_TABLES, INDEX_TABLES, DenseWeights


@dataclass(frozen=True, slots=True)
class HeldDense:
    """What a slot's adapter has here: ``page`` is its row of ``DensePool.vectors``."""

    offsets: tuple[int, ...]
    page: int | None
    affine_groups: frozenset[str]
    norms: frozenset[str]
    tables: Mapping[str, Tensor]


class DensePool:
    """The dense parts of all adapters on the device, by slot."""

    def __init__(
        self,
        num_bytes: int,
        shapes: ModuleShapes,
        dtype: torch.dtype,
        device: torch.device | str,
        num_slots: int,
    ) -> None:
        self.layout = shapes.vectors
        self.num_slots = num_slots
        self._dtype = dtype
        self._arena = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._extents = Extents(num_bytes)
        self._row_bytes = self.layout.size * torch.float32.itemsize
        num_pages = num_bytes // self._row_bytes
        rows = self._arena[: num_pages * self._row_bytes].view(torch.float32)
        self._vectors = rows.view(num_pages, self.layout.size)
        self._held: dict[int, HeldDense] = {}

    @property
    def device(self) -> torch.device:
        """Where the arena is."""
        return self._arena.device

    @property
    def vectors(self) -> Tensor:
        """The vectors of adapters, a row each: [num_pages, layout.size] float32."""
        return self._vectors

    @property
    def num_bytes(self) -> int:
        """Bytes of the arena."""
        return self._extents.num_bytes

    @property
    def num_free_bytes(self) -> int:
        """Bytes that no adapter has."""
        return self._extents.num_free

    def held(self, slot: int) -> HeldDense | None:
        """What a slot's adapter has here; None if it has nothing."""
        return self._held.get(slot)

    def affine(self, group: str, layer: int) -> tuple[Tensor, Tensor]:
        """Scales and shifts of a group in a layer, [num_pages, out_features] float32 each."""
        scale, shift = self.layout.scale(group, layer), self.layout.shift(group, layer)
        return self._vectors.narrow(1, *scale), self._vectors.narrow(1, *shift)

    def norm(self, name: str, layer: int) -> Tensor:
        """Weights of a norm in a layer, [num_pages, size] float32."""
        return self._vectors.narrow(1, *self.layout.norm(name, layer))

    def fits(self, dense: DenseWeights) -> bool:
        """Whether an adapter with these parts can be loaded now; only shapes count."""
        places = self._take(dense, self._extents)
        for place in places or ():
            self._extents.give_back(place)
        return places is not None

    def room_without(self, slots: Sequence[int]) -> Extents:
        """The book of the arena if these slots were empty; to ``try_in``."""
        book = self._extents.copy()
        for slot in slots:
            held = self._held.get(slot)
            for place in () if held is None else held.offsets:
                book.give_back(place)
        return book

    def try_in(self, book: Extents, dense: DenseWeights) -> bool:
        """Whether parts of these shapes would find their places in ``book``, which may change."""
        return self._take(dense, book) is not None

    def is_possible(self, dense: DenseWeights) -> bool:
        """Whether an adapter with these parts can be loaded when no other is."""
        return self._take(dense, Extents(self.num_bytes)) is not None

    def reserve(self, slot: int, dense: DenseWeights) -> None:
        """Take memory for parts of these shapes, all of it or none.

        Raises AdapterError when there is too little.
        """
        assert 0 <= slot < self.num_slots, f"slot {slot} of {self.num_slots}"
        assert slot not in self._held, f"slot {slot} is in use"
        places = self._take(dense, self._extents)
        if places is None:
            free, total = self.num_free_bytes, self.num_bytes
            needed = f"needs {dense.num_bytes} bytes for what is no low-rank pair"
            raise AdapterError("dense", f"{needed}; {free} of {total} are free")
        tables = places[len(places) - len(dense.tables) :]
        self._held[slot] = HeldDense(
            offsets=places,
            page=None if dense.vectors is None else places[0] // self._row_bytes,
            affine_groups=dense.affine_groups,
            norms=dense.norms,
            tables={
                name: self._table(name, place, table.shape)
                for place, (name, table) in zip(tables, dense.tables.items(), strict=True)
            },
        )

    def _take(self, dense: DenseWeights, extents: Extents) -> tuple[int, ...] | None:
        """Places of the vectors, if there are any, and then the tables."""
        places: list[int | None] = []
        if dense.vectors is not None:
            places.append(extents.take(self._row_bytes, self._row_bytes))
        for name, table in dense.tables.items():
            num_bytes = table.numel() * self._dtype_of(name).itemsize
            places.append(extents.take(max(num_bytes, 1), from_end=True))
        taken = [place for place in places if place is not None]
        if len(taken) == len(places):
            return tuple(taken)
        for place in taken:
            extents.give_back(place)
        return None

    def _dtype_of(self, name: str) -> torch.dtype:
        if name in INDEX_TABLES:
            return torch.int64
        return torch.float32 if name in FLOAT32_TABLES else self._dtype

    def _table(self, name: str, place: int, shape: torch.Size) -> Tensor:
        dtype = self._dtype_of(name)
        return self._arena.narrow(0, place, shape.numel() * dtype.itemsize).view(dtype).view(shape)

    def write(self, slot: int, dense: DenseWeights) -> int:
        """Fill what a slot has reserved, in the dtypes of the pool; returns the bytes written.

        Any thread may do this while steps run: none of them reads what is not its adapters'.
        """
        held = self._held[slot]
        if dense.vectors is not None:
            assert held.page is not None
            self._copy(self._vectors[held.page], dense.vectors)
        for name, table in dense.tables.items():
            self._copy(held.tables[name], table)
        return dense.num_bytes

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if self._arena.is_cpu:
            ops.copy_on_one_core(target, source)
        else:
            assert target.dtype == source.dtype, f"{target.dtype} is not {source.dtype}"
            target.copy_(source, non_blocking=True)

    def unload(self, slot: int) -> None:
        """Give a slot's memory back, if it has any; no launched step may still read it."""
        held = self._held.pop(slot, None)
        for place in () if held is None else held.offsets:
            self._extents.give_back(place)

    def check(self) -> None:
        """Memory is conserved, and every row of the vectors is one adapter's."""
        self._extents.check()
        pages = [held.page for held in self._held.values() if held.page is not None]
        assert len(pages) == len({*pages})
        assert self._extents.starts == {o for held in self._held.values() for o in held.offsets}
