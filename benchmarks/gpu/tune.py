"""Which plans of the LoRA kernels are fastest on this card: ``--tune``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.ops import LoraWork
from branchline.lora.bank import AdapterBank, GroupPool
from branchline.lora.shapes import PAGE_RANK, GroupShape, ModuleShapes
from branchline.lora.work import build_work

from .checkpoints import LEAST, TINY, shape_of
from .device import device_of, graphed, timed
from .harness import fill_bank, random_pages
from .sections import Run

NUM_LAYERS = 8
"""Layers that are gone through in turn on a GPU, so that no weights come from its cache."""

BEST = 3

DENSE = "one dense product over all active slots"
"""No kernels of ours: what they have to beat, above all where one adapter has all rows."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Rows of a step and the adapters that they carry, rank 16 each."""

    name: str
    num_rows: int
    num_adapters: int

    def work(self, bank: AdapterBank) -> LoraWork:
        """As an eager step packs it."""
        each = self.num_rows // self.num_adapters
        works = build_work(range(self.num_adapters), [each] * self.num_adapters, bank)
        return works["group"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Kernels of one pair of plans, as a step over all layers."""

    name: str
    run: Callable[[], None]


def num_layers(run: Run) -> int:
    """Layers of a trial."""
    return NUM_LAYERS if run.options.device == "cuda" else 1


def groups_of(shape_name: str) -> dict[str, GroupShape]:
    """The linears of the shape's layers that adapters change."""
    shape = shape_of(shape_name)
    shapes = ModuleShapes.for_decoder(
        num_layers=1,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )
    return shapes.groups


def traffic(shape_name: str) -> tuple[Traffic, ...]:
    """Decodes of one adapter and of an adapter each, and a prompt."""
    if shape_of(shape_name) in (TINY, LEAST):
        return (Traffic("decode, 1 adapter", 4, 1), Traffic("decode, all distinct", 4, 4))
    return (
        Traffic("decode, 1 adapter", 64, 1),
        Traffic("decode, all distinct", 64, 64),
        Traffic("prefill, 1 adapter", 2048, 1),
    )


def compile_plans(run: Run, group: str) -> None:
    """Run each candidate once: then the compiler's cache has it, and timing it costs little."""
    for kind in traffic(run.options.shape):
        for candidate in _candidates(run, group, kind):
            if not run.has_time():
                run.note(f"out of time while compiling for {group}, {kind.name}")
                return
            _try(run, candidate)


def time_plans(run: Run) -> None:
    """The fastest plans of each linear and kind of step, beside those in use."""
    device = device_of(run.options.device)
    for group in groups_of(run.options.shape):
        for kind in traffic(run.options.shape):
            found: list[tuple[float, str]] = []
            for candidate in _candidates(run, group, kind):
                if not run.has_time():
                    run.note(f"out of time at {group}, {kind.name}")
                    break
                if _try(run, candidate):
                    replay = graphed(device, candidate.run)
                    seconds = timed(device, replay, 10).median / num_layers(run)
                    found.append((seconds, candidate.name))
            best = [
                (seconds, f"{place}. {name}")
                for place, (seconds, name) in enumerate(sorted(found)[:BEST], 1)
            ]
            dense = [(seconds, name) for seconds, name in found if name == DENSE]
            for seconds, name in [(found[0][0], "in use"), *dense, *best] if found else []:
                run.figure(f"{group}, {kind.name}: {name}", seconds * 1e6, "us a layer")


def _try(run: Run, candidate: Candidate) -> bool:
    try:
        candidate.run()
    except Exception as error:  # a plan may need more shared memory than there is
        run.note(f"{candidate.name}: {type(error).__name__}: {str(error)[:200]}")
        return False
    return True


def _candidates(run: Run, group: str, kind: Traffic) -> Iterator[Candidate]:
    """The plans in use first; none where the kernels don't run."""
    device = device_of(run.options.device)
    shape = groups_of(run.options.shape)[group]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(kind.num_rows, shape.in_features, device=device).to(dtype)
    if not ops.uses_kernels(x):
        run.note("the kernels need a GPU, or TRITON_INTERPRET=1")
        return
    from branchline.kernels.gpu.lora_expand import expand
    from branchline.kernels.gpu.lora_plans import candidates, expand_plan, shrink_plan
    from branchline.kernels.gpu.lora_shrink import shrink

    depth = num_layers(run)
    shapes = ModuleShapes(depth, {"group": shape})
    bank = AdapterBank(shapes, depth, kind.num_adapters, dtype, device, kind.num_adapters)
    for slot in range(kind.num_adapters):
        bank.reserve(slot, random_pages(shapes, 16))
    fill_bank(bank)
    work, pool = kind.work(bank), bank.pools["group"]
    y = torch.zeros(kind.num_rows, shape.out_features, device=device, dtype=dtype)
    columns = 16 * len(shape.slices)
    in_use = (
        shrink_plan(work.tile_rows, columns, shape.in_features, x.element_size()),
        expand_plan(work.tile_rows, work.max_tiles, shape.out_features),
    )
    most = None if device.type == "cuda" else 1
    for shrinking, expanding in (in_use, *islice(candidates(work.tile_rows), most)):

        def step(shrinking: object = shrinking, expanding: object = expanding) -> None:
            for a_pages, b_pages in zip(pool.a_layers, pool.b_layers, strict=True):
                hidden = shrink(x, a_pages, work, plan=shrinking)  # type: ignore[arg-type]
                expand(hidden, b_pages, pool.slice_sizes, work, y, plan=expanding)  # type: ignore[arg-type]

        names = (
            str(plan).partition("Plan")[2].replace("num_", "") for plan in (shrinking, expanding)
        )
        yield Candidate(" ".join(names), step)
    yield Candidate(DENSE, _dense_step(x, y, pool, kind))


def _dense_step(x: Tensor, y: Tensor, pool: GroupPool, kind: Traffic) -> Callable[[], None]:
    """cuBLAS in place of the kernels: every row meets every adapter, and a mask keeps its own."""
    rows, adapters = kind.num_rows, kind.num_adapters
    owners = torch.arange(rows, device=x.device) // (rows // adapters)
    is_own = (owners[:, None] == torch.arange(adapters, device=x.device)).to(x.dtype)

    def step() -> None:
        for a_pages, b_pages in zip(pool.a_layers, pool.b_layers, strict=True):
            hidden = torch.mm(x, a_pages.flatten(0, 1).t())
            own = hidden.view(rows, adapters, -1, PAGE_RANK) * is_own[:, :, None, None]
            b_slices = b_pages.flatten(0, 1).split_with_sizes(pool.slice_sizes, 1)
            y_slices = y.split_with_sizes(pool.slice_sizes, 1)
            for number, (y_slice, b_slice) in enumerate(zip(y_slices, b_slices, strict=True)):
                y_slice.addmm_(own[:, :, number].flatten(1), b_slice)

    return step
