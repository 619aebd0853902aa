"""A linear whose rows carry adapters: shrink and expand for decodes, prompts and mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.layers import project
from branchline.lora.shapes import PAGE_RANK, GroupShape, ModuleShapes
from branchline.lora.weights import AdapterWeights, GroupWeights

from .bench import Bench, Case, error, wide
from .routing import step_lora

Segments = tuple[tuple[int | None, int], ...]
RANK_PAGES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Linear:
    """A group's sizes: ``slices`` side by side, over ``features``."""

    features: int
    slices: tuple[int, ...]


QKV = Linear(4096, (4096, 1024, 1024))
GATE_UP = Linear(4096, (14336, 14336))
DOWN = Linear(14336, (4096,))
SMALL = Linear(128, (96, 32, 32))
ODD = Linear(80, (48,))


class Loaded:
    """A bank of random adapters, ``pages[slot]`` pages each, and their pairs in float64."""

    def __init__(self, bench: Bench, linear: Linear, pages: tuple[int, ...]) -> None:
        named = tuple((f"part_{i}", size) for i, size in enumerate(linear.slices))
        shapes = ModuleShapes(1, {"group": GroupShape(linear.features, named)})
        self.bank = AdapterBank(shapes, 1, sum(pages) + 2, bench.dtype, bench.device, len(pages))
        self.sizes = linear.slices
        self.pairs: list[tuple[Tensor, Tensor]] = []
        # What nobody's pages hold must not come into anyone's sum.
        for pool in self.bank.pools.values():
            pool.a.fill_(1e4)
            pool.b.fill_(1e4)
        for slot, count in enumerate(pages):
            a_ranks = len(linear.slices) * PAGE_RANK
            a = bench.draw(1, count, a_ranks, linear.features, scale=linear.features**-0.5)
            b = bench.draw(1, count, PAGE_RANK, sum(linear.slices), scale=0.2)
            self.pairs.append((wide(a)[0], wide(b)[0]))
            self.bank.load(slot, AdapterWeights({"group": GroupWeights(a.cpu(), b.cpu())}))

    def delta(self, x: Tensor, slot: int) -> Tensor:
        """x A^T B slice by slice, in float64."""
        a, b = self.pairs[slot]
        parts = []
        for index, b_slice in enumerate(torch.split(b, list(self.sizes), -1)):
            a_slice = a[:, index * PAGE_RANK : (index + 1) * PAGE_RANK]
            parts.append(x @ a_slice.flatten(0, 1).T @ b_slice.flatten(0, 1))
        return torch.cat(parts, -1)


def lora(
    bench: Bench, segments: Segments, linear: Linear, pages: tuple[int, ...] = RANK_PAGES
) -> float:
    """``project`` against float64; rows without an adapter are the base's, bit for bit."""
    linear = bench.pick(linear, ODD if len(linear.slices) == 1 else SMALL)
    loaded = Loaded(bench, linear, pages)
    lengths = [length for _, length in segments]
    x = bench.draw(sum(lengths), linear.features)
    weight = bench.draw(sum(linear.slices), linear.features, scale=linear.features**-0.5)
    step = step_lora(loaded.bank, [slot for slot, _ in segments], lengths)
    actual = project(x, weight, None, 0, "group", step)
    plain = ops.linear(x, weight)
    rows, is_base = [], []
    for (slot, length), part in zip(segments, torch.split(wide(x), lengths), strict=True):
        base = part @ wide(weight).T
        rows.append(base if slot is None else base + loaded.delta(part, slot))
        is_base += [slot is None] * length
    base_rows = torch.tensor(is_base, device=bench.device)
    if sum(lengths) <= 64 and not torch.equal(actual[base_rows], plain[base_rows]):
        return float("inf")
    return error(actual, torch.cat(rows))


def distinct(number: int) -> Segments:
    """One row each of adapters 0 to ``number - 1``, a base row among every eight."""
    rows: list[tuple[int | None, int]] = []
    for slot in range(number):
        if slot % 8 == 3:
            rows.append((None, 1))
        rows.append((slot, 1))
    return tuple(rows)


def all_distinct(bench: Bench, linear: Linear) -> float:
    number = bench.pick(56, 9, 3)
    return lora(bench, distinct(number), linear, (1,) * number)


def high_ranks(bench: Bench) -> float:
    """Ranks of 16 to 512 side by side."""
    pages = bench.pick((32, 16, 8, 1), (6, 3, 1, 1), (3, 1, 1, 1))
    return lora(bench, ((0, 1), (1, 1), (None, 1), (3, 1), (2, 2), (0, 1)), QKV, pages)


def long_step(bench: Bench, linear: Linear) -> float:
    """Long enough that the adapters' part is written first, and the base's added to it."""
    prompt = bench.pick(1024, 150, 130)
    segments: Segments = ((0, prompt), (None, prompt // 2), (None, 1), (1, prompt), (0, 3))
    return lora(bench, segments, linear)


SCATTERED: Segments = ((0, 1), (None, 1), (1, 1), (2, 1), (0, 1), (2, 3), (None, 5), (1, 2))
LONG: Segments = ((2, 70), (None, 9), (0, 130))
MIXED: Segments = ((0, 1), (1, 1), (None, 1), (1, 1), (None, 40), (2, 33), (0, 17))

CASES: dict[str, Case] = {
    "lora, scattered rows": partial(lora, segments=SCATTERED, linear=QKV),
    "lora, long runs": partial(lora, segments=LONG, linear=QKV),
    "lora, decodes and prompts": partial(lora, segments=MIXED, linear=QKV),
    "lora, one adapter": partial(lora, segments=((1, 1),) * 7, linear=QKV),
    "lora, gate and up": partial(lora, segments=SCATTERED, linear=GATE_UP),
    "lora, down": partial(lora, segments=SCATTERED, linear=DOWN),
    "lora, down, long runs": partial(lora, segments=LONG, linear=DOWN),
    "lora, long prompts": partial(long_step, linear=QKV),
    "lora, long prompts, down": partial(long_step, linear=DOWN),
    "lora, all distinct": partial(all_distinct, linear=QKV),
    "lora, all distinct, down": partial(all_distinct, linear=DOWN),
    "lora, ranks to 512": high_ranks,
}
