"""A bank with fewer slots than adapters, and copies that are made when the test says so."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import torch

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.formatted import read_header, write_formatted
from branchline.lora.host_adapters import HostAdapters
from branchline.lora.residency import AdapterResidency
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
    """Copies when the test says so, in the order they were asked for.

    ``may_overlap``: nothing that is copied is read by steps.
    """

    def __init__(self) -> None:
        self.jobs: deque[tuple[Future[int], Callable[[], int]]] = deque()
        self.bytes_per_second: float | None = None
        self.may_overlap = False

    def submit(self, job: Callable[[], int], *, after_launched: bool = True) -> Future[int]:
        assert after_launched or self.may_overlap, "a launched step may still read it"
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


class Reads(ManualCopies):
    """Files into host memory, which no step reads."""

    def __init__(self) -> None:
        super().__init__()
        self.may_overlap = True


class PromptCopies(Reads):
    """Copies as soon as they are asked for."""

    def submit(self, job: Callable[[], int], *, after_launched: bool = True) -> Future[int]:
        future = super().submit(job, after_launched=after_launched)
        self.run()
        return future


def pages_for(adapters: Iterable[Mapping[str, int]], num_slots: int) -> dict[str, int]:
    """Pages of each group that hold any ``num_slots`` of these adapters at once."""
    counts: dict[str, list[int]] = {}
    for num_pages in adapters:
        for name, count in num_pages.items():
            counts.setdefault(name, []).append(count)
    return {name: sum(sorted(held)[-num_slots:]) for name, held in counts.items()}


class House:
    """Adapters a to f in host memory, and a bank for some of them.

    A load costs nothing but its bytes, so that the least recently used one goes first.
    """

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
        self._folder = tempfile.TemporaryDirectory()
        size = sum(weights.num_bytes + 256 for weights in self.host.values())
        self.tier = HostAdapters(size, torch.device(device), cast("ops.CopyThread", PromptCopies()))
        num_pages = pages_for((w.num_pages for w in self.host.values()), num_slots)
        self.bank = AdapterBank(SHAPES, 2, num_pages, dtype, device, num_slots)
        self.slots = AdapterSlots(num_slots)
        self.copies = ManualCopies()
        self.wire(copies)
        for digest in DIGESTS:
            path = Path(self._folder.name, digest)
            write_formatted(path, self.host[digest], None, {})
            self.residency.register(digest, read_header(path))
            self.tier.advance([digest])
        self.tier.advance([])
        assert self.tier.present == list(DIGESTS)

    def wire(self, copies: ops.CopyThread | None = None) -> None:
        """Set the residency up over the bank and the slots there are."""
        by_hand = cast("ops.CopyThread", self.copies)
        self.residency = AdapterResidency(
            self.bank, self.slots, self.tier, copies or by_hand, launch_seconds=0.0
        )

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
