"""The engine's adapters: added, brought where they are wanted, pinned, evicted and removed."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import torch

from ..lora.bank import AdapterBank
from ..lora.errors import AdapterError
from ..lora.formatted import FormattedHeader, read_header
from ..lora.host_adapters import HostAdapters
from ..lora.residency import AdapterResidency
from ..lora.slots import AdapterSlots
from ..lora.tier_events import TierEvent
from ..lora.traits import AdapterTraits
from .adapter_calls import AdapterAnswer, AdapterCalls
from .adapter_memory import AdapterBudget
from .adapter_types import AdapterReport, FreedAdapter, PinTier, Tier
from .errors import RequestError
from .models.decoder import Decoder
from .module_shapes import module_shapes

MAX_FRESH = 8
"""New adapters that one step looks after."""


class Users(Protocol):
    """Who knows the requests of an adapter: the scheduler."""

    def num_requests_of(self, adapter: str) -> int:
        """Live requests: running, waiting and held."""


class AdapterNews(NamedTuple):
    """What became ready, why loads failed, by digest, and who is gone."""

    ready: list[str]
    failures: dict[str, str]
    removed: list[str]


class EngineAdapters:
    """Registered versions, by digest, and where each of them is.

    ``traits`` is what the scheduler reads; a version is in it from ``add`` until it is removed
    and its last request has ended. ``spool`` holds files that go with the engine.
    """

    def __init__(
        self,
        bank: AdapterBank,
        slots: AdapterSlots,
        host: HostAdapters,
        residency: AdapterResidency | None = None,
    ) -> None:
        self.bank = bank
        self.slots = slots
        self.host = host
        self.residency = residency or AdapterResidency(bank, slots, host)
        self.traits: dict[str, AdapterTraits] = {}
        self._calls = AdapterCalls()
        self._loads: dict[str, int] = {}
        self._evictions: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._events: list[TierEvent] = []
        self._on_host: set[str] = set()
        self._fresh: deque[str] = deque()
        self.spool: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def with_budget(cls, budget: AdapterBudget, decoder: Decoder) -> EngineAdapters:
        """No adapters yet, and room for some."""
        shapes = module_shapes(decoder.config)
        bank = AdapterBank(
            shapes,
            shapes.num_layers,
            budget.num_pages,
            decoder.dtype,
            decoder.device,
            budget.num_slots,
            budget.dense_bytes,
            budget.page_dtype,
        )
        return cls(
            bank, AdapterSlots(budget.num_slots), HostAdapters(budget.host_bytes, decoder.device)
        )

    # -- versions in and out -----------------------------------------------------------------------

    def add(self, digest: str, path: str, *, is_alias: bool = False) -> AdapterReport:
        """Make a version known; one that is known stays as it is.

        It is brought as near as there is free room for; nothing gives way before it is wanted.
        ``is_alias``: the file's own digest may be another.
        Raises AdapterError for a file that is no adapter of this base, or one too large.
        """
        self._calls.removed(digest, FreedAdapter(device_bytes=0, host_bytes=0))
        if digest not in self.traits:
            header = read_header(path)
            is_other = not is_alias and header.about.get("digest", digest) != digest
            if is_other or not header.parts:
                raise AdapterError("path", "is the formatted file of another adapter, or of none")
            self._require_fitting(header)
            self.residency.register(digest, header)
            weights = header.shapes
            self.traits[digest] = AdapterTraits.from_pages(
                weights.num_pages,
                weights.num_bytes,
                invocation_tokens=header.invocation_tokens,
                is_dense=weights.dense is not None,
                vocab_size=weights.vocab_size,
            )
            self._fresh.append(digest)
        return self.report(digest)

    def _require_fitting(self, header: FormattedHeader) -> None:
        """Raise AdapterError unless pages have the shapes and the dtype of the bank's."""
        for name, group in header.shapes.groups.items():
            pool = self.bank.pools.get(name)
            if pool is None:
                raise AdapterError("path", f"the base model has no modules {name}")
            given, stored = (group.a, group.b, group.scales), (pool.a, pool.b, pool.scales)
            if list(map(_kind, given)) != list(map(_kind, stored)):
                raise AdapterError("path", f"{name} has pages of another base model or dtype")
        dense, pool_dense = header.shapes.dense, self.bank.dense
        vectors = None if dense is None else dense.vectors
        if pool_dense and vectors is not None and vectors.numel() != pool_dense.layout.size:
            raise AdapterError("path", "has vectors of another base model")

    def remove(self, call_id: str, digest: str) -> None:
        """Have a version go once its last request has ended; unknown ones are gone already."""
        self._calls.failed(digest, "the adapter was removed")
        self._calls.remove(call_id, digest)

    def _remove(self, digest: str, users: Users) -> bool:
        """Free all that a version has, if nobody uses it."""
        if digest not in self.traits:
            self._calls.removed(digest, FreedAdapter(device_bytes=0, host_bytes=0))
            return True
        if users.num_requests_of(digest):
            return False
        freed = self.residency.unregister(digest)
        if freed is None:
            return False
        del self.traits[digest]
        self._on_host.discard(digest)
        for counts in (self._loads, self._evictions, self._errors):
            counts.pop(digest, None)
        device_bytes, host_bytes = freed
        self._calls.removed(digest, FreedAdapter(device_bytes=device_bytes, host_bytes=host_bytes))
        return True

    # -- where they are ----------------------------------------------------------------------------

    def load(self, call_id: str, digest: str, tier: PinTier) -> None:
        """Have a version brought to a tier; raises RequestError for one that nobody added."""
        self._require(digest)
        self._calls.load(call_id, digest, tier)

    def pin(self, call_id: str, digest: str, tier: PinTier | None) -> None:
        """Keep a version in a tier, and bring it there; None ends that.

        Raises RequestError for one that nobody added, AdapterError where too much is pinned.
        """
        self._require(digest)
        if tier == "device":
            self.residency.require_pinnable(digest)
        if tier == "host":
            self.host.require_pinnable(digest)
        self._unpin(digest)
        if tier == "device":
            self.slots.pinned.add(digest)
        if tier == "host":
            self.host.pin(digest)
        if tier is None:
            self._calls.answer(call_id, self.report(digest))
        else:
            self._calls.load(call_id, digest, tier)

    def _unpin(self, digest: str) -> None:
        self.slots.pinned.discard(digest)
        self.host.pinned.discard(digest)

    def evict(self, digest: str, tier: PinTier, users: Users) -> AdapterReport:
        """Take a version off the device, or out of host memory too; raises RequestError if used."""
        self._require(digest)
        num_users = max(users.num_requests_of(digest), self.slots.num_leases(digest))
        if num_users:
            raise RequestError("adapter", f"{num_users} requests use it")
        if digest in self.slots.pinned or (tier == "host" and digest in self.host.pinned):
            raise RequestError("adapter", "it is pinned")
        if self.slots.state(digest) == "loading" or not self.host.is_idle(digest):
            raise RequestError("adapter", "it is being loaded")
        if self.slots.state(digest) == "ready":
            self.residency.evict(digest)
        if tier == "host":
            self.host.evict(digest)
        self._take_events()
        return self.report(digest)

    def _require(self, digest: str) -> None:
        if digest not in self.traits or digest in self._calls.removals:
            raise RequestError("adapter", f"{digest!r} is not loaded")

    def advance(self, wanted: Sequence[str], users: Users) -> AdapterNews:
        """Bring in what requests want, then what admins asked for; see to removals."""
        asked = [d for d in self._calls.wanted("device") if self.slots.state(d) != "ready"]
        ready = self.residency.advance([*wanted, *asked], self._calls.wanted("host"))
        self._bring_fresh()
        failures = self.residency.failures()
        self._take_events()
        self._errors.update({d: error for d, error in failures.items() if d in self.traits})
        removed: list[str] = []
        if self._calls.are_open:
            self._answer(failures)
            removed = [digest for digest in self._calls.removals if self._remove(digest, users)]
        return AdapterNews(ready, failures, removed)

    def _bring_fresh(self) -> None:
        """Bring what was just added to where there is free room, some at a time."""
        for _ in range(min(len(self._fresh), MAX_FRESH)):
            digest = self._fresh.popleft()
            if digest in self.traits and self.residency.bring_if_free(digest):
                self._fresh.append(digest)

    def _take_events(self) -> None:
        for event in self.residency.events():
            if event.tier == "device" and event.kind != "failed":
                counts = self._loads if event.kind == "loaded" else self._evictions
                counts[event.digest] = counts.get(event.digest, 0) + 1
            if event.kind == "loaded":
                self._errors.pop(event.digest, None)
            self._note_host(event.digest)
            self._events.append(event)

    def _note_host(self, digest: str) -> None:
        """Whether a version's nearest copy is in host memory."""
        is_here = digest in self.traits and self.tier(digest) == "host"
        (self._on_host.add if is_here else self._on_host.discard)(digest)

    def _answer(self, failures: dict[str, str]) -> None:
        late = "no room came free for it: the others are in use or pinned"
        errors = dict.fromkeys(self._calls.expired(), late) | failures
        for digest, error in errors.items():
            self._errors[digest] = error
            self._unpin(digest)
            self._calls.failed(digest, error)
        for digest in self._calls.wanted("device"):
            if self.slots.state(digest) == "ready":
                self._calls.came(digest, "device", self.report(digest))
        for digest in self._calls.wanted("host"):
            if self.host.weights(digest) is not None:
                self._calls.came(digest, "host", self.report(digest))

    @property
    def is_busy(self) -> bool:
        """Whether something is under way, or waits to be answered."""
        return bool(self._calls.are_open or self._fresh or self.residency.num_loading)

    def answers(self) -> list[AdapterAnswer]:
        """Calls that have ended since this was asked last."""
        return self._calls.answers()

    def events(self) -> list[TierEvent]:
        """What came and went since this was asked last."""
        events, self._events = self._events, []
        return events

    # -- what others ask ---------------------------------------------------------------------------

    def report(self, digest: str, num_requests: int = 0) -> AdapterReport:
        """How a version stands."""
        pin: PinTier | None = "host" if digest in self.host.pinned else None
        return AdapterReport(
            digest=digest,
            rank=self.traits[digest].rank,
            tier=self.tier(digest),
            device_bytes=self.traits[digest].num_bytes,
            host_bytes=self.host.num_bytes_of(digest),
            is_loading=self.slots.state(digest) == "loading" or self.host.is_reading(digest),
            pin="device" if digest in self.slots.pinned else pin,
            num_requests=num_requests,
            last_used=self.slots.last_used(digest),
            num_loads=self._loads.get(digest, 0),
            num_evictions=self._evictions.get(digest, 0),
            error=self._errors.get(digest),
        )

    def reports(self, users: Users, digests: Collection[str] | None = None) -> list[AdapterReport]:
        """How these versions stand, as far as they are known; None: all, oldest first."""
        chosen = self.traits if digests is None else [d for d in digests if d in self.traits]
        return [self.report(digest, users.num_requests_of(digest)) for digest in chosen]

    def tier(self, digest: str) -> Tier:
        """Where the nearest copy is."""
        if self.slots.state(digest) == "ready":
            return "device"
        return "disk" if self.host.weights(digest) is None else "host"

    def stats(self) -> dict[str, int]:
        """The fields of EngineStats about adapters: counts by nearest tier, loads and bytes."""
        host, residency, bank = self.host, self.residency, self.bank
        num_device = self.slots.num_ready
        num_host = len(self._on_host)
        dense = bank.dense
        return {
            "num_adapter_loads": residency.num_loads,
            "num_host_adapter_loads": host.num_loads,
            "num_adapter_evictions": residency.num_evictions,
            "num_host_adapter_evictions": host.num_evictions,
            "num_device_adapters": num_device,
            "num_host_adapters": num_host,
            "num_disk_adapters": len(self.traits) - num_device - num_host,
            "adapter_device_bytes": bank.num_used_bytes,
            "max_adapter_device_bytes": bank.num_bytes,
            "adapter_dense_bytes": 0 if dense is None else dense.num_bytes - dense.num_free_bytes,
            "max_adapter_dense_bytes": 0 if dense is None else dense.num_bytes,
            "adapter_host_bytes": host.num_used_bytes,
            "max_adapter_host_bytes": host.num_bytes,
            "max_adapters": self.slots.num_slots,
        }

    def check(self) -> None:
        """Tiers agree with one another and with what is registered."""
        self.residency.check()
        assert list(self.traits) == self.slots.digests
        assert all(digest in self.host for digest in self.traits)

    def close(self) -> None:
        """End the copying."""
        self.residency.close()
        if self.spool is not None:
            self.spool.cleanup()


def _kind(pages: torch.Tensor | None) -> tuple[torch.dtype, tuple[int, ...]] | None:
    """Dtype and shape of pages [layers, pages, ...], without how many they are."""
    return None if pages is None else (pages.dtype, (*pages.shape[:1], *pages.shape[2:]))
