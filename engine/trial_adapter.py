"""An adapter of random numbers, for trials before there are requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..lora.bank import AdapterBank, GroupPool
from ..lora.shapes import PAGE_RANK
from ..lora.weights import AdapterWeights, GroupWeights

EFFECT = 1.0
"""About how large what it adds to a linear's output is, for inputs around 1."""

SEED = 0x5EED


@contextmanager
def trial_slot(bank: AdapterBank) -> Iterator[int | None]:
    """A slot with random pages in as many groups as have one free.

    Where all is taken it is that of the smallest adapter of low-rank pairs alone, None if there
    is none.
    """
    free = [slot for slot in range(bank.num_slots) if slot not in bank.loaded_slots]
    generator = torch.Generator(bank.device).manual_seed(SEED)
    groups = {
        name: _random_page(pool, bank.dtype, generator)
        for name, pool in bank.pools.items()
        if pool.fits(1)
    }
    if not free or not groups:
        yield _smallest(bank)
        return
    bank.load(free[0], AdapterWeights(groups))
    try:
        yield free[0]
    finally:
        bank.unload(free[0])


def _smallest(bank: AdapterBank) -> int | None:
    plain = [s for s in bank.loaded_slots if bank.dense is None or bank.dense.held(s) is None]
    pools = bank.pools.values()
    return min(plain, key=lambda slot: (sum(len(p.pages(slot)) for p in pools), slot), default=None)


def _random_page(pool: GroupPool, dtype: torch.dtype, generator: torch.Generator) -> GroupWeights:
    """Rank 16 in every layer, large enough to be seen in the logits of any model."""
    a, b = (
        torch.randn(
            (stored.shape[0], 1, *stored.shape[2:]), generator=generator, device=stored.device
        )
        for stored in (pool.a, pool.b)
    )
    a *= a.shape[-1] ** -0.5
    b *= EFFECT * PAGE_RANK**-0.5
    return GroupWeights(a.to(dtype), b.to(dtype))
