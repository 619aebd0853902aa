"""Steps of a random model with and without adapters, beside what its bytes allow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.engine.plan import StepPlan
from branchline.kernels.backend import interprets

from .checkpoints import shape_of, write_config
from .device import device_of, release
from .harness import Harness, Room, fill_bank, random_bytes
from .machine import BANDWIDTH, bandwidth
from .models import random_decoder
from .report import OF_BASE
from .sections import Options, Run

PREFILL = 2048
MAX_MODEL_LEN = 2176
BYTES_SCALE = 4
DECODE_REPEATS, PREFILL_REPEATS = 40, 10


@dataclass(frozen=True, slots=True)
class Grid:
    """What is timed: batch sizes, contexts, ranks, numbers of distinct adapters."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    ranks: tuple[int, ...]
    distinct: tuple[int, ...]
    prefill: int = PREFILL

    @classmethod
    def of(cls, options: Options) -> Grid:
        """What matters most comes first; next to nothing on a host."""
        if options.device != "cuda":
            small = cls((4, 1), (20,), (16, 32), (1, 4), 32)
            return cls((2,), (20,), (16,), (1, 2), 8) if interprets() else small
        batches = (64, 1, 16, 256) if options.is_full else (64, 1, 16)
        return cls(batches, (2048, 512), (16, 64), (1, 16, 64))

    def loads(self) -> Iterator[tuple[int, int]]:
        """(batch, context) pairs."""
        return ((batch, context) for batch in self.batches for context in self.contexts)

    def adapters(self, batch: int) -> Iterator[tuple[int, int]]:
        """(distinct adapters, rank) pairs that such a batch can have."""
        return ((d, r) for r in self.ranks for d in self.distinct if d <= batch)

    def room(self, **changes: object) -> Room:
        """An engine for all of it, without adapters."""
        return Room(max(self.batches), max(*self.contexts, self.prefill), **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Model:
    """A random decoder, and what a decode step must read at least."""

    decoder: Decoder
    weight_bytes: int
    bandwidth: float

    def limit(self, batch: int, context: int, adapter_bytes: int, kv_itemsize: int) -> float:
        """Seconds that the bytes take: weights, keys and values, adapters."""
        config = self.decoder.config
        head_bytes = config.head_dim * kv_itemsize
        if kv_itemsize == 1:
            head_bytes += BYTES_SCALE
        token_bytes = 2 * config.num_layers * config.num_kv_heads * head_bytes
        total = self.weight_bytes + token_bytes * batch * context + adapter_bytes
        return total / self.bandwidth


def time_decode(run: Run) -> None:
    """The core first: what there is no time for is left out, with a note."""
    grid = Grid.of(run.options)
    _full_precision(run, grid)
    run_part(run, "decode, 8 bits", lambda: _fp8(run, grid))


def _full_precision(run: Run, grid: Grid) -> None:
    model = build_model(run)
    base = Baseline(run, model, grid)
    run_part(run, "decode, base", base.measure)
    run_part(run, "decode, adapters", lambda: _adapters(run, model, grid, base.seconds))
    run_part(run, "decode, eager", lambda: _eager(run, model, grid, base.seconds))


def run_part(run: Run, name: str, part: Callable[[], None]) -> None:
    """What fails is recorded; the next part begins with its memory back."""
    if not run.has_time():
        run.note(f"out of time before {name}")
        return
    try:
        part()
    except Exception:
        run.failed(name)
    release(device_of(run.options.device))


def open_harness(run: Run, decoder: Decoder, room: Room) -> Harness:
    """One that replays graphs; if there can be none, which is wrong, one that runs eagerly."""
    try:
        return Harness(decoder, room)
    except Exception:
        if room.enforce_eager:
            raise
        run.failed("graphs")
    release(decoder.device)
    return Harness(decoder, replace(room, enforce_eager=True))


def build_model(run: Run, is_fp8: bool = False) -> Model:
    """The model of the shape asked for; bandwidth as measured, now if it was not."""
    device = device_of(run.options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as name:
        directory = write_config(shape_of(run.options.shape), Path(name), dtype)
        config = ModelConfig.from_directory(directory)
    known = run.figures.get(BANDWIDTH)
    rate = bandwidth(device) if known is None else known * 1e12
    longest = MAX_MODEL_LEN if device.type == "cuda" else 64
    run.fact("model", f"{shape_of(run.options.shape).name}, {'8 bits' if is_fp8 else dtype}")
    decoder, weight_bytes = random_decoder(config, dtype, device, longest, is_fp8)
    return Model(decoder, weight_bytes, rate)


class Baseline:
    """Our own engine without adapters; ``seconds`` of each kind of step, by its name."""

    def __init__(self, run: Run, model: Model, grid: Grid) -> None:
        self._run = run
        self._model = model
        self._grid = grid
        self.seconds: dict[str, float] = {}

    def measure(self) -> None:
        """Decodes of all loads, then prompts."""
        run, model, grid = self._run, self._model, self._grid
        with open_harness(run, model.decoder, grid.room()) as harness:
            run.fact("seconds to start an engine", round(harness.start_seconds, 1))
            itemsize = model.decoder.dtype.itemsize
            for batch, context in grid.loads():
                name = load_name(batch, context)
                plan = harness.decode(context, [None] * batch)
                seconds = record(run, f"{name}, base", harness, plan)
                self.seconds[name] = seconds
                limit = model.limit(batch, context, 0, itemsize)
                run.figure(f"{name}, base: share of the byte limit", limit / seconds, "of 1")
            for number in (1, 4):
                plan = harness.prefill(*prompts(grid.prefill, [None] * number))
                name = f"prefill {grid.prefill} tokens, {number} of base"
                self.seconds[name] = record(run, name, harness, plan, PREFILL_REPEATS)


def _adapters(run: Run, model: Model, grid: Grid, base: dict[str, float]) -> None:
    """An engine with as many adapters as the largest case has."""
    most = max(d * r for batch in grid.batches for d, r in grid.adapters(batch))
    number = max(grid.distinct)
    num_bytes = random_bytes(model.decoder, most)
    with Harness(model.decoder, grid.room(max_adapters=number, adapter_bytes=num_bytes)) as harness:
        run.fact("seconds to start it with adapters", round(harness.start_seconds, 1))
        fill_bank(harness.bank)
        for rank in grid.ranks:
            slots = harness.load(number, rank)
            for batch, context in grid.loads():
                name = load_name(batch, context)
                if rank == grid.ranks[0]:
                    plan = harness.decode(context, [None] * batch)
                    seconds = record(run, f"{name}, base, adapters loaded", harness, plan)
                    ratio(run, f"{name}, base, adapters loaded", base.get(name), seconds)
                for distinct in (d for d, r in grid.adapters(batch) if r == rank):
                    if not run.has_time():
                        run.note(f"out of time before {name}, {distinct} x r{rank}")
                        return
                    kind = f"{name}, {distinct} x r{rank}"
                    plan = harness.decode(context, [slots[i % distinct] for i in range(batch)])
                    seconds = record(run, kind, harness, plan)
                    ratio(run, kind, base.get(name), seconds)
                    adapter_bytes = random_bytes(model.decoder, rank) * distinct
                    limit = model.limit(batch, context, adapter_bytes, model.decoder.dtype.itemsize)
                    run.figure(f"{kind}: share of the byte limit", limit / seconds, "of 1")
            if rank == grid.ranks[0]:
                _prefill(run, harness, grid, slots, base)


def _prefill(
    run: Run, harness: Harness, grid: Grid, slots: list[int], base: dict[str, float]
) -> None:
    for number in (1, 4):
        lengths, chosen = prompts(grid.prefill, [slots[i % len(slots)] for i in range(number)])
        name = f"prefill {grid.prefill} tokens, {number} x r{grid.ranks[0]}"
        seconds = record(run, name, harness, harness.prefill(lengths, chosen), PREFILL_REPEATS)
        ratio(run, name, base.get(f"prefill {grid.prefill} tokens, {number} of base"), seconds)


def _eager(run: Run, model: Model, grid: Grid, base: dict[str, float]) -> None:
    """The same without graphs: what replaying them saves."""
    number, rank = max(grid.distinct), grid.ranks[0]
    num_bytes = random_bytes(model.decoder, number * rank)
    room = grid.room(max_adapters=number, adapter_bytes=num_bytes, enforce_eager=True)
    with open_harness(run, model.decoder, room) as harness:
        fill_bank(harness.bank)
        slots = harness.load(number, rank)
        for batch in grid.batches[:2]:
            name = load_name(batch, grid.contexts[0])
            distinct = min(batch, number)
            kinds: dict[str, list[int | None]] = {
                f"{name}, base, eager": [None] * batch,
                f"{name}, {distinct} x r{rank}, eager": [slots[i % distinct] for i in range(batch)],
            }
            for kind, chosen in kinds.items():
                if not run.has_time():
                    run.note(f"out of time before {kind}")
                    return
                seconds = record(run, kind, harness, harness.decode(grid.contexts[0], chosen))
                ratio(run, kind, base.get(name), seconds)


def _fp8(run: Run, grid: Grid) -> None:
    """Weights and keys and values in 8 bits, an adapter of its own for each request."""
    model = build_model(run, is_fp8=True)
    number, rank = max(grid.distinct), grid.ranks[0]
    room = grid.room(
        max_adapters=number,
        adapter_bytes=random_bytes(model.decoder, number * rank),
        kv_cache_dtype="fp8",
    )
    with open_harness(run, model.decoder, room) as harness:
        fill_bank(harness.bank)
        slots = harness.load(number, rank)
        batch, context = grid.batches[0], grid.contexts[0]
        name = f"{load_name(batch, context)}, 8 bits"
        seconds = record(run, f"{name}, base", harness, harness.decode(context, [None] * batch))
        limit = model.limit(batch, context, 0, 1)
        run.figure(f"{name}, base: share of the byte limit", limit / seconds, "of 1")
        chosen = [slots[i % number] for i in range(batch)]
        kind = f"{name}, {min(number, batch)} x r{rank}"
        ratio(run, kind, seconds, record(run, kind, harness, harness.decode(context, chosen)))


def load_name(batch: int, context: int) -> str:
    """How a load is named in the results."""
    return f"decode B={batch} L={context}"


def prompts(num_tokens: int, slots: Sequence[int | None]) -> tuple[list[int], list[int | None]]:
    """``num_tokens`` of prompts, one a slot."""
    return [num_tokens // len(slots)] * len(slots), list(slots)


def record(
    run: Run, name: str, harness: Harness, plan: StepPlan, repeats: int = DECODE_REPEATS
) -> float:
    """Time a step and write it down; its median in seconds."""
    timings = harness.time(plan, repeats_of(run, repeats))
    details = {"spread": timings.spread, "is_replayed": harness.is_replayed(plan)}
    run.figure(name, timings.median * 1000, "ms", **details)
    wants_graph = run.options.device == "cuda" and "decode" in name and "eager" not in name
    if wants_graph and not details["is_replayed"]:
        run.note(f"{name}: no captured graph serves it")
    return timings.median


def repeats_of(run: Run, on_gpu: int) -> int:
    """How often a step is timed."""
    return on_gpu if run.options.device == "cuda" else 1 if interprets() else 3


def ratio(run: Run, name: str, base: float | None, seconds: float) -> None:
    """Throughput beside that of the base without adapters."""
    if base is not None:
        run.figure(f"{name}: {OF_BASE}", base / seconds, "of 1")
