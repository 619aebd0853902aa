"""A bank with fewer slots than adapters, and copies that are made when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import cast

import torch

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.residency import AdapterResidency, pages_for
from branchline.lora.shapes import ModuleShapes
from branchline.lora.slots import AdapterSlots, SlotLease
from branchline.lora.weights import AdapterWeights
from branchline.tests.support.lora_reference import random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=2, hidden_size=8, intermediate_size=12, num_heads=2, num_kv_heads=1, head_dim=4
)
GROUPS = tuple(SHAPES.groups)
RANKS = {
    "a": dict.fromkeys(GROUPS, 8),
    "b": dict.fromkeys(GROUPS, 40),
    "c": {"qkv": 64, "o": 16},
    "d": {"down": 33},
    "e": dict.fromkeys(GROUPS, 16),
    "f": {"gate_up": 48, "down": 1},
}
DIGESTS = tuple(RANKS)


class ManualCopies:
    """Copies when the test says so, in the order they were asked for."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Future[int], Callable[[], int]]] = deque()

    def submit(self, job: Callable[[], int], *, after_launched: bool = True) -> Future[int]:
        future: Future[int] = Future()
        self.jobs.append((future, job))
        return future

    def run(self, count: int = 1) -> None:
        for _ in range(count):
            future, job = self.jobs.popleft()
            future.set_result(job())

    def fail(self) -> None:
        self.jobs.popleft()[0].set_exception(OSError("the copy broke off"))

    def close(self) -> None:
        for future, _ in self.jobs:
            future.cancel()


class House:
    """Adapters a to f in host memory, and a bank for some of them."""

    def __init__(
        self,
        num_slots: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        copies: ops.CopyThread | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        self.host: dict[str, AdapterWeights] = {}
        for digest, ranks in RANKS.items():
            weights = random_weights(SHAPES, ranks, generator).as_dtype(dtype)
            self.host[digest] = weights
        num_pages = pages_for((w.num_pages for w in self.host.values()), num_slots)
        self.bank = AdapterBank(SHAPES, 2, num_pages, dtype, device, num_slots)
        self.slots = AdapterSlots(num_slots)
        for digest in DIGESTS:
            self.slots.register(digest)
        self.copies = ManualCopies()
        self.wire(copies)

    def wire(self, copies: ops.CopyThread | None = None) -> None:
        """Set the residency up over the bank and the slots there are."""
        by_hand = cast("ops.CopyThread", self.copies)
        self.residency = AdapterResidency(self.bank, self.slots, self.host, copies or by_hand)

    def load(self, digests: Sequence[str]) -> None:
        """Bring these in, each to its end."""
        for digest in digests:
            self.residency.advance([digest])
            self.copies.run()
            assert self.residency.advance([]) == [digest]

    def states(self) -> dict[str, str]:
        held = {digest: self.slots.state(digest) for digest in DIGESTS}
        return {digest: state for digest, state in held.items() if state != "absent"}

    def acquire(self, digest: str) -> SlotLease:
        lease = self.slots.acquire(digest)
        assert lease is not None, f"{digest} is {self.slots.state(digest)}"
        return lease

    def check(self) -> None:
        self.residency.check()
        for digest in DIGESTS:
            if self.slots.state(digest) == "ready":
                self.check_pages(digest)

    def check_pages(self, digest: str) -> None:
        """What a version's pages hold is its host copy, bit by bit."""
        slot, weights = self.slots.slot(digest), self.host[digest]
        assert slot is not None
        for name, pool in self.bank.pools.items():
            pages = list(pool.pages(slot))
            assert len(pages) == weights.num_pages.get(name, 0)
            if pages:
                assert torch.equal(pool.a[:, pages].cpu(), weights.groups[name].a)
                assert torch.equal(pool.b[:, pages].cpu(), weights.groups[name].b)
