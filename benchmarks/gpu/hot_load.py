"""What requests in flight notice while adapters are copied to the device beside their steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from branchline.kernels.backend import interprets
from branchline.lora.formatted import write_formatted
from branchline.lora.weights import AdapterWeights, GroupWeights

from .decode import build_model, open_harness
from .device import Timings
from .harness import Harness, Room, random_bytes, random_pages
from .sections import Run

RANK = 16
KEPT, *COMING = "kept", "first", "second", "third"


class Nobody:
    """There are no requests but those made up here."""

    def num_requests_of(self, adapter: str) -> int:
        """None."""
        return 0


def time_hot_load(run: Run) -> None:
    """Steps of base rows and one adapter, quiet and beside loads of others."""
    is_gpu = run.options.device == "cuda"
    batch, context, num_steps = (64, 2048, 300) if is_gpu else (2, 20, 4 if interprets() else 12)
    model = build_model(run)
    num_bytes = random_bytes(model.decoder, RANK)
    room = Room(batch, context, 3, 4 * num_bytes, host_bytes=5 * num_bytes)
    with open_harness(run, model.decoder, room) as harness, tempfile.TemporaryDirectory() as name:
        for digest in (KEPT, *COMING):
            write_adapter_file(Path(name) / digest, harness)
        loads = Loads(harness, Path(name))
        slot = loads.bring(KEPT)
        rows: list[int | None] = [None, slot] * (batch // 2)
        step = harness.stepper(harness.decode(context, rows))
        for _ in range(5 if is_gpu else 1):
            step()
        quiet = paced(num_steps, step)
        busy = paced(num_steps, step, loads.go_on)
        assert loads.seconds, "nothing was loaded meanwhile"
    for share, label in ((0.5, "median"), (0.99, "p99")):
        before, after = quiet.percentile(share) * 1000, busy.percentile(share) * 1000
        run.figure(f"hot load of r16: quiet steps, {label}", before, "ms")
        run.figure(f"hot load of r16: steps beside loads, {label}", after, "ms")
    added = (busy.percentile(0.99) - quiet.percentile(0.99)) * 1000
    run.figure("hot load of r16: added to the p99 of other requests' steps", added, "ms")
    took = Timings(tuple(loads.seconds))
    run.figure("hot load of r16: from host memory to ready, median", took.median * 1000, "ms")
    run.fact("adapters loaded meanwhile", len(loads.seconds))


def write_adapter_file(path: Path, harness: Harness) -> None:
    """A random adapter on all linears, as the server leaves it for the engine."""
    from branchline.engine.module_shapes import module_shapes

    decoder = harness.engine._runner.decoder
    generator = torch.Generator().manual_seed(len(path.name))
    groups = {}
    for name, group in random_pages(module_shapes(decoder.config), RANK).groups.items():
        parts = [
            torch.empty(part.shape, dtype=decoder.dtype).normal_(0, 0.02, generator=generator)
            for part in (group.a, group.b)
        ]
        groups[name] = GroupWeights(*parts)
    write_formatted(path, AdapterWeights(groups), None, {"digest": path.name})


class Loads:
    """Brings adapters one after the other, over and over, as the engine's own loop does."""

    def __init__(self, harness: Harness, directory: Path) -> None:
        self._adapters = harness.engine.adapters
        self._directory = directory
        self._next = 0
        self.seconds: list[float] = []
        for digest in (KEPT, *COMING):
            self._adapters.add(digest, str(directory / digest))
        for digest in (KEPT, *COMING):
            self.bring(digest)
        for digest in COMING:
            if self._adapters.slots.state(digest) == "ready":
                self._adapters.residency.evict(digest)
        self._adapters.events()

    def bring(self, digest: str, deadline: float = 30.0) -> int:
        """Wait until it is on the device; its slot."""
        until = time.monotonic() + deadline
        while self._adapters.slots.state(digest) != "ready":
            news = self._adapters.advance([digest], Nobody())
            if news.failures or time.monotonic() > until:
                raise RuntimeError(f"{digest} can't be loaded: {news.failures}")
            time.sleep(0.001)
        slot = self._adapters.slots.slot(digest)
        assert slot is not None
        return slot

    def go_on(self) -> None:
        """Between two steps: start the next load, or see whether it is there and let it go."""
        digest = COMING[self._next % len(COMING)]
        if digest in self._adapters.advance([KEPT, digest], Nobody()).ready:
            self.seconds += [
                event.seconds
                for event in self._adapters.events()
                if event.tier == "device" and event.kind == "loaded"
            ]
            self._adapters.residency.evict(digest)
            self._next += 1


def paced(num_steps: int, *work: Callable[[], object]) -> Timings:
    """What a reader of the tokens sees: the time from one step's end to the next one's."""
    marks = [time.perf_counter()]
    for _ in range(num_steps):
        for part in work:
            part()
        marks.append(time.perf_counter())
    return Timings(tuple(b - a for a, b in pairwise(marks)))
