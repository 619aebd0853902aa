"""Device storage of adapters: pages of 16 ranks per module group, over all layers.

        page 0    page 1    page 2    page 3    page 4            a [layers, pages, slices*16, K]
    qkv [ shout ] [ legal ] [ legal ] [ free  ] [ legal ]  ...    b [layers, pages, 16, N]
    o   [ shout ] [ free  ] [ free  ] [ free  ] [ free  ]  ...

``shout`` has rank 8 and no padding beyond its page; ``legal`` has rank 48 on qkv alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..kernels import ops
from .clear_memory import clear_tensor
from .dense import DensePool
from .errors import AdapterError
from .footprint import Footprint, Kept
from .fp8_pages import to_pages
from .shapes import PAGE_RANK, GroupShape, ModuleShapes
from .weights import AdapterWeights, GroupWeights

MAX_PAGES_PER_ADAPTER = 32
NO_PAGE = -1


class GroupPool:
    """The pages of one module group.

    ``a_layers[l]`` [num_pages, slices*16, K] and ``b_layers[l]`` [num_pages, 16, N] are the views
    a layer works with, ``scale_layers[l]`` [num_pages, slices*16] float32 what pages in 8 bits are
    multiplied by (None: they are not). ``page_table`` [num_slots, max_pages] int32, on the host,
    holds each slot's pages in rank order, then ``NO_PAGE``; ``page_counts`` [num_slots] how many
    it has.
    """

    def __init__(
        self,
        shape: GroupShape,
        num_layers: int,
        num_pages: int,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        a_ranks = len(shape.slices) * PAGE_RANK
        self.shape = shape
        self.slice_sizes = shape.slice_sizes
        self.num_pages = num_pages
        size_a = (num_layers, num_pages, a_ranks, shape.in_features)
        size_b = (num_layers, num_pages, PAGE_RANK, shape.out_features)
        self.a = clear_tensor(size_a, dtype, device)
        self.b = clear_tensor(size_b, dtype, device)
        self.scales: torch.Tensor | None = None
        if dtype == ops.FP8:
            self.scales = clear_tensor(size_a[:-1], torch.float32, device)
        self.a_layers = self.a.unbind(0)
        self.b_layers = self.b.unbind(0)
        self.scale_layers: tuple[torch.Tensor | None, ...] = (None,) * num_layers
        if self.scales is not None:
            self.scale_layers = self.scales.unbind(0)
        max_pages = max(1, min(num_pages, MAX_PAGES_PER_ADAPTER))
        self.page_table = np.full((num_slots, max_pages), NO_PAGE, dtype=np.int32)
        self.page_counts = np.zeros(num_slots, dtype=np.int64)
        self._free = set(range(num_pages))
        self._held: dict[int, tuple[int, ...]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages, with their scales."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.a.nbytes + self.b.nbytes + scales

    @property
    def num_free(self) -> int:
        """Pages that no slot holds."""
        return len(self._free)

    def pages(self, slot: int) -> tuple[int, ...]:
        """A slot's pages in rank order; none if its adapter leaves this group alone."""
        return self._held.get(slot, ())

    def fits(self, num_pages: int) -> bool:
        """Whether an adapter with this many pages can be loaded now."""
        return num_pages <= min(len(self._free), self.page_table.shape[1])

    def reserve(self, slot: int, num_pages: int) -> None:
        """Give a slot its pages; the caller has checked that they fit."""
        pages = self._take(num_pages)
        self._held[slot] = pages
        self.page_table[slot, :num_pages] = pages
        self.page_counts[slot] = num_pages

    def write(self, slot: int, weights: GroupWeights) -> None:
        """Copy weights of the pages' dtype into the pages that the slot has."""
        pages = self.pages(slot)
        own = (self.a, self.b, self.scales)
        for stored, given in zip(own, (weights.a, weights.b, weights.scales), strict=True):
            assert (stored is None) == (given is None), "both have scales, or neither has"
            if stored is None or given is None:
                continue
            if stored.is_cpu:
                for number, page in enumerate(pages):
                    ops.copy_on_one_core(stored[:, page], given[:, number])
            else:  # piece by piece, so that nothing is allocated on the device
                for number, page in enumerate(pages):
                    for layer in range(stored.shape[0]):
                        stored[layer, page].copy_(given[layer, number], non_blocking=True)

    def unload(self, slot: int) -> None:
        """Give a slot's pages back."""
        self._free.update(self._held.pop(slot, ()))
        self.page_table[slot] = NO_PAGE
        self.page_counts[slot] = 0

    def _take(self, count: int) -> tuple[int, ...]:
        """The lowest pages that lie side by side (a GEMM needs no gather then), else any."""
        free = sorted(self._free)
        chosen = free[:count]
        for first in range(len(free) - count + 1):
            if free[first + count - 1] - free[first] == count - 1:
                chosen = free[first : first + count]
                break
        self._free.difference_update(chosen)
        return tuple(chosen)

    def check(self) -> None:
        """Every page is free or held once, and the table says what is held."""
        held = [page for pages in self._held.values() for page in pages]
        assert sorted([*held, *self._free]) == list(range(self.num_pages))
        assert self.page_counts.tolist() == [
            len(self.pages(slot)) for slot in range(len(self.page_counts))
        ]
        for slot, row in enumerate(self.page_table.tolist()):
            pages = self.pages(slot)
            assert row == [*pages, *[NO_PAGE] * (len(row) - len(pages))]


class AdapterBank:
    """All adapters on the device, by slot: pages for their pairs, and a pool for what is dense.

    ``num_pages`` is the number of pages of each group, or one number for all of them.
    ``num_slots`` is how many adapters can be there at once; None: as many as pages.
    ``dense_bytes`` 0: adapters that bring more than low-rank pairs find no room.
    ``page_dtype`` None: pages are in ``dtype``, as what is dense; else float8_e4m3fn with scales.
    """

    def __init__(
        self,
        shapes: ModuleShapes,
        num_layers: int,
        num_pages: int | Mapping[str, int],
        dtype: torch.dtype,
        device: torch.device | str,
        num_slots: int | None = None,
        dense_bytes: int = 0,
        page_dtype: torch.dtype | None = None,
    ) -> None:
        counts = {
            name: num_pages if isinstance(num_pages, int) else num_pages.get(name, 0)
            for name in shapes.groups
        }
        self.shapes = shapes
        self.dtype = dtype
        self.page_dtype = page_dtype or dtype
        self.device = torch.device(device)
        self.num_slots = max(1, sum(counts.values())) if num_slots is None else num_slots
        self.pools = {
            name: GroupPool(
                shape, num_layers, counts[name], self.num_slots, self.page_dtype, self.device
            )
            for name, shape in shapes.groups.items()
        }
        self.dense: DensePool | None = None
        if dense_bytes:
            self.dense = DensePool(dense_bytes, shapes, dtype, self.device, self.num_slots)
        self._loaded: set[int] = set()

    @property
    def loaded_slots(self) -> frozenset[int]:
        """Slots that are not empty."""
        return frozenset(self._loaded)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(pool.num_bytes for pool in self.pools.values())

    @property
    def num_used_bytes(self) -> int:
        """Bytes of the pages that slots hold."""
        return sum(
            pool.num_bytes // pool.num_pages * (pool.num_pages - pool.num_free)
            for pool in self.pools.values()
            if pool.num_pages
        )

    def load(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter in an empty slot, all of it or nothing.

        Raises AdapterError when there is too little room, or a value is too large for the bank's
        dtypes.
        """
        weights = to_pages(weights, self.shapes, self.dtype, self.page_dtype)
        self.reserve(slot, weights)
        self.write(slot, weights)

    def require_possible(self, footprint: Footprint, kept: Kept) -> None:
        """Raise AdapterError for an adapter that can't be here beside what is ``kept``."""
        for name, count in footprint.num_pages.items():
            pages = self.pools[name].num_pages - kept.num_pages.get(name, 0)
            most = min(pages, MAX_PAGES_PER_ADAPTER)
            if count > most:
                raise AdapterError(
                    "adapter",
                    f"needs {count} pages of 16 ranks for {name}, at most {most} can be had "
                    "(--adapter-memory-gb, and what is pinned)",
                )
        if footprint.dense is not None:
            needed, pool = footprint.dense_bytes, self.dense
            most = (0 if pool is None else pool.num_bytes) - kept.dense_bytes
            if pool is None or needed > most or not pool.is_possible(footprint.dense):
                raise AdapterError(
                    "adapter",
                    f"needs {needed} bytes for what is dense, at most {most} can be had "
                    "(--adapter-dense-gb, and what is pinned)",
                )

    def num_to_evict(self, footprint: Footprint, slots: Sequence[int]) -> int | None:
        """How many of ``slots``, in their order, must be empty for an adapter to find room.

        None if all of them would not do.
        """
        free = {name: pool.num_free for name, pool in self.pools.items()}
        for number in range(len(slots) + 1):
            if number:
                for name, pool in self.pools.items():
                    free[name] += len(pool.pages(slots[number - 1]))
            has_pages = all(count <= free[name] for name, count in footprint.num_pages.items())
            if has_pages and self._has_dense_room(footprint, slots[:number]):
                return number
        return None

    def _has_dense_room(self, footprint: Footprint, empty: Sequence[int]) -> bool:
        if footprint.dense is None:
            return True
        pool = self.dense
        return pool is not None and pool.try_in(pool.room_without(empty), footprint.dense)

    def reserve(self, slot: int, weights: AdapterWeights) -> None:
        """Take room for an adapter that is yet to be written to an empty slot, all or nothing.

        Raises AdapterError when there is too little. Only sizes are read.
        """
        assert 0 <= slot < self.num_slots, f"slot {slot} of {self.num_slots}"
        assert slot not in self._loaded, f"slot {slot} is in use"
        for name, count in weights.num_pages.items():
            if not self.pools[name].fits(count):
                free = self.pools[name].num_free
                raise AdapterError(name, f"needs {count} pages of 16 ranks, {free} are free")
        if weights.dense is not None:
            if self.dense is None:
                raise AdapterError("dense", "there is no memory for more than low-rank pairs")
            self.dense.reserve(slot, weights.dense)
        for name, count in weights.num_pages.items():
            self.pools[name].reserve(slot, count)
        self._loaded.add(slot)

    def write(self, slot: int, weights: AdapterWeights) -> int:
        """Fill the room of a reserved slot with weights of the bank's dtypes; returns their bytes.

        Any thread may do this while steps run: a step may read pages between those of its own
        adapters, and leaves what comes of them aside (see ``mapping.MAX_HOLES``).
        """
        for name, group in weights.groups.items():
            self.pools[name].write(slot, group)
        if weights.dense is not None and self.dense is not None:
            self.dense.write(slot, weights.dense)
        return weights.num_bytes

    def unload(self, slot: int) -> None:
        """Empty a slot; its room is free at once, so no launched step may still read it."""
        assert slot in self._loaded, f"slot {slot} is empty"
        for pool in self.pools.values():
            pool.unload(slot)
        if self.dense is not None:
            self.dense.unload(slot)
        self._loaded.remove(slot)

    def check(self) -> None:
        """Room is conserved everywhere and only loaded slots hold any."""
        for pool in self.pools.values():
            pool.check()
            assert all(slot in self._loaded for slot in range(self.num_slots) if pool.pages(slot))
        if self.dense is not None:
            self.dense.check()
