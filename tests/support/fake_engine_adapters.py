"""The adapters of a fake engine: what it was told, and where each version is said to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from branchline.engine.adapter_types import (
    AdapterEvent,
    AdapterReport,
    FreedAdapter,
    PinTier,
    Tier,
)
from branchline.engine.errors import RequestError

DEVICE_BYTES, HOST_BYTES = 2000, 1000


class EngineAdapters:
    """``reports`` by digest; ``paths`` are the files given, ``calls`` all calls in order.

    Removals wait while ``go`` is cleared. ``errors`` makes the calls of that name fail.
    """

    def __init__(self, on_event: Callable[[AdapterEvent], None]) -> None:
        self.on_event = on_event
        self.reports: dict[str, AdapterReport] = {}
        self.paths: dict[str, str] = {}
        self.calls: list[tuple[object, ...]] = []
        self.errors: dict[str, RequestError] = {}
        self.go = asyncio.Event()
        self.go.set()

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        error = self.errors.get(str(call[0]))
        if error is not None:
            raise error

    async def add(self, digest: str, path: str) -> AdapterReport:
        self._called("add", digest)
        if not Path(path).is_file():
            raise RequestError("path", f"{path} is missing")
        self.paths[digest] = path
        report = AdapterReport(
            digest=digest,
            rank=16,
            tier="disk",
            device_bytes=DEVICE_BYTES,
            host_bytes=HOST_BYTES,
        )
        return self.reports.setdefault(digest, report)

    async def remove(self, digest: str) -> FreedAdapter:
        self._called("remove", digest)
        await self.go.wait()
        report = self.reports.pop(digest, None)
        if report is None:
            return FreedAdapter(device_bytes=0, host_bytes=0)
        return FreedAdapter(
            device_bytes=DEVICE_BYTES if report.tier == "device" else 0,
            host_bytes=0 if report.tier == "disk" else HOST_BYTES,
        )

    async def load(self, digest: str, tier: PinTier) -> AdapterReport:
        self._called("load", digest, tier)
        return self._move(digest, tier)

    async def evict(self, digest: str, tier: PinTier) -> AdapterReport:
        self._called("evict", digest, tier)
        report = self._known(digest)
        if report.pin in (tier, "device"):
            raise RequestError("adapter", "it is pinned")
        left: Tier = "host" if tier == "device" and report.tier != "disk" else "disk"
        number = report.num_evictions + 1
        self.reports[digest] = replace(report, tier=left, num_evictions=number)
        self._tell(digest, tier, "evicted")
        return self.reports[digest]

    async def pin(self, digest: str, tier: PinTier | None) -> AdapterReport:
        self._called("pin", digest, tier)
        self.reports[digest] = replace(self._known(digest), pin=tier)
        return self.reports[digest] if tier is None else self._move(digest, tier)

    async def report(self, digests: list[str] | None = None) -> list[AdapterReport]:
        self._called("report")
        return [r for r in self.reports.values() if digests is None or r.digest in digests]

    def _move(self, digest: str, tier: PinTier) -> AdapterReport:
        report = self._known(digest)
        nearest: Tier = "device" if "device" in (tier, report.tier) else "host"
        self.reports[digest] = replace(report, tier=nearest, num_loads=report.num_loads + 1)
        self._tell(digest, tier, "loaded")
        return self.reports[digest]

    def _known(self, digest: str) -> AdapterReport:
        if digest not in self.reports:
            raise RequestError("adapter", f"{digest!r} is not loaded")
        return self.reports[digest]

    def _tell(self, digest: str, tier: PinTier, kind: Literal["loaded", "evicted"]) -> None:
        self.on_event(
            AdapterEvent(digest=digest, tier=tier, kind=kind, num_bytes=DEVICE_BYTES, seconds=0.5)
        )
