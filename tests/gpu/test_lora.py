"""The LoRA kernels against float64, with everything they must not read set to NaN."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.gpu.lora_expand import expand
from branchline.kernels.gpu.lora_shrink import shrink
from branchline.lora.bank import AdapterBank
from branchline.lora.fp8_pages import to_pages
from branchline.lora.layers import StepLora, project
from branchline.lora.mapping import build_mapping
from branchline.lora.shapes import GroupShape, ModuleShapes
from branchline.lora.work import WorkCapacity, build_work, pack_work, work_views
from branchline.tests.support.lora_reference import dense_delta, random_weights

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
GROUPS = {
    "qkv": GroupShape(40, (("q", 48), ("k", 16), ("v", 16))),
    "odd": GroupShape(23, (("gate", 37), ("up", 37))),
    "o": GroupShape(16, (("o", 33),)),
}
SHAPES = ModuleShapes(num_layers=1, groups=GROUPS)
Segments = Sequence[tuple[int | None, int]]


@dataclass(frozen=True)
class House:
    """A bank whose free pages are NaN, and the dense weights of each slot's adapter by group."""

    bank: AdapterBank
    deltas: dict[int, dict[str, Tensor]]


def make_house(
    ranks: Sequence[int | dict[str, int]],
    device: torch.device,
    dtype: torch.dtype,
    page_dtype: torch.dtype | None = None,
) -> House:
    generator = torch.Generator().manual_seed(5)
    bank = AdapterBank(
        *(SHAPES, 1, 2 * len(ranks) + 40, dtype, device),
        num_slots=len(ranks) + 2,
        page_dtype=page_dtype,
    )
    for pool in bank.pools.values():
        for tensor in (pool.a, pool.b, pool.scales):
            if tensor is not None:
                tensor.fill_(torch.nan)
    deltas: dict[int, dict[str, Tensor]] = {}
    for slot, rank in enumerate(ranks):
        by_group = rank if isinstance(rank, dict) else dict.fromkeys(GROUPS, rank)
        weights = random_weights(SHAPES, by_group, generator)
        rounded = to_pages(weights, SHAPES, dtype, bank.page_dtype).groups
        bank.load(slot, replace(weights, groups=rounded))
        deltas[slot] = {
            name: dense_delta(group, 0, GROUPS[name].slice_sizes) for name, group in rounded.items()
        }
    return House(bank, deltas)


def rows_of(segments: Segments) -> list[int | None]:
    return [slot for slot, length in segments for _ in range(length)]


def work_of(house: House, segments: Segments) -> dict[str, ops.LoraWork]:
    return build_work([s for s, _ in segments], [n for _, n in segments], house.bank)


def inputs(house: House, segments: Segments, group: str) -> tuple[Tensor, Tensor]:
    """x and y; the base model's rows of x are NaN."""
    generator = torch.Generator().manual_seed(11)
    rows, shape = rows_of(segments), GROUPS[group]
    x = torch.randn(len(rows), shape.in_features, generator=generator).to(house.bank.dtype)
    x[[row for row, slot in enumerate(rows) if slot is None]] = torch.nan
    y = torch.randn(len(rows), shape.out_features, generator=generator).to(house.bank.dtype)
    return x.to(house.bank.device), y.to(house.bank.device)


def expected_of(house: House, segments: Segments, group: str, x: Tensor, y: Tensor) -> Tensor:
    expected = y.cpu().double()
    for row, slot in enumerate(rows_of(segments)):
        if slot is not None and group in house.deltas[slot]:
            expected[row] += house.deltas[slot][group] @ x[row].cpu().double()
    return expected


def run(
    house: House, group: str, work: ops.LoraWork, x: Tensor, y: Tensor, add: bool = True
) -> Tensor:
    """A new y; what the kernels allocate is NaN, y's own rows stay as they are."""
    pool = house.bank.pools[group]
    with pytest.MonkeyPatch.context() as patch:
        poisoned = Mock(side_effect=lambda *a, **k: torch.full(*a, fill_value=torch.nan, **k))
        patch.setattr(torch, "empty", poisoned)
        hidden = shrink(x, pool.a_layers[0], work, pool.scale_layers[0])
    assert poisoned.called
    y = y.clone()
    expand(hidden, pool.b_layers[0], pool.slice_sizes, work, y, add)
    return y


def check(house: House, segments: Segments, group: str) -> None:
    x, y = inputs(house, segments, group)
    got = run(house, group, work_of(house, segments)[group], x, y)
    expected = expected_of(house, segments, group, x, y)
    tolerance = TOLERANCE[house.bank.dtype]
    torch.testing.assert_close(got.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    rows = rows_of(segments)
    base = [r for r, s in enumerate(rows) if s is None or group not in house.deltas[s]]
    assert torch.equal(got[base], y[base])


@pytest.fixture(scope="module")
def house(device: torch.device) -> House:
    return make_house([16, 1, 40, 8, 16, {"qkv": 16}, 33], device, torch.float32)


@pytest.mark.parametrize("group", GROUPS)
def test_mixed_ranks_and_base_rows(house: House, group: str) -> None:
    """Rank 1 to 40, an adapter that leaves the group alone, empty segments, base rows between."""
    check(house, [(2, 3), (None, 2), (1, 1), (5, 2), (0, 0), (6, 1), (2, 1), (None, 1)], group)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", GROUPS)
def test_half_precision(group: str, dtype: torch.dtype, device: torch.device) -> None:
    house = make_house([16, 40], device, dtype)
    check(house, [(1, 2), (None, 1), (0, 2)], group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", GROUPS)
def test_pages_in_8_bits(group: str, dtype: torch.dtype, device: torch.device) -> None:
    """Each page has its own scales, and each of its slices; ranks fill pages in part."""
    house = make_house([16, 40, 1], device, dtype, ops.FP8)
    scales = house.bank.pools[group].scales
    assert scales is not None
    scales[:, house.bank.pools[group].pages(0)[0]] *= 3
    house.deltas[0][group] *= 3
    check(house, [(1, 2), (None, 1), (0, 20), (2, 1)], group)


def test_projections_with_pages_in_8_bits(device: torch.device) -> None:
    """Through the layer: long steps, whose base GEMM runs last, and short ones."""
    house = make_house([16, 40], device, torch.float32, ops.FP8)
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(33, 16, generator=generator).to(device)
    for segments in ([(1, 200), (None, 30), (0, 40)], [(1, 2), (None, 1), (0, 1)]):
        x = torch.randn(len(rows_of(segments)), 16, generator=generator).to(device)
        mapping = build_mapping([s for s, _ in segments], [n for _, n in segments], house.bank)
        assert mapping is not None
        got = project(x, weight, None, 0, "o", StepLora(house.bank, mapping))
        base = (x.double() @ weight.double().t()).cpu()
        expected = expected_of(house, segments, "o", x, base)
        torch.testing.assert_close(got.cpu().double(), expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("num_rows", [64, 512])
def test_one_adapter_on_all_rows(house: House, num_rows: int) -> None:
    """In low tiles, and from 256 rows on in high ones."""
    work = work_of(house, [(0, num_rows)])["qkv"]
    assert (work.tile_counts > 0).sum() == num_rows // work.tile_rows
    check(house, [(0, num_rows)], "qkv")


@pytest.mark.parametrize("num_rows", [64, 512])
def test_an_adapter_on_each_row(num_rows: int, device: torch.device) -> None:
    house = make_house([1 + i % 17 for i in range(num_rows)], device, torch.float32)
    order = random.Random(1).sample(range(num_rows), num_rows)
    check(house, [(slot, 1) for slot in order], "o")


def test_popularity_like_zipf(house: House) -> None:
    rng = random.Random(2)
    slots = rng.choices([0, 1, 2, 3, None, 5, 6], [1 / n for n in range(1, 8)], k=40)
    check(house, [(slot, 1) for slot in slots], "odd")


def test_the_highest_rank(device: torch.device) -> None:
    """512 ranks are 32 pages of one tile."""
    house = make_house([512, 16], device, torch.float32)
    assert len(house.bank.pools["o"].pages(0)) == 32
    check(house, [(0, 2), (1, 1)], "o")


def test_pages_that_lie_apart(device: torch.device) -> None:
    house = make_house([16, 16, 16, 16], device, torch.float32)
    bank = house.bank
    fill = list(range(4, bank.pools["o"].num_pages))
    for pool in bank.pools.values():
        pool._free.difference_update(fill)
    bank.unload(0)
    bank.unload(2)
    generator = torch.Generator().manual_seed(9)
    weights = random_weights(SHAPES, dict.fromkeys(GROUPS, 32), generator)
    bank.load(4, weights)
    assert bank.pools["o"].pages(4) == (0, 2)
    for name, group in weights.groups.items():
        house.deltas.setdefault(4, {})[name] = dense_delta(group, 0, GROUPS[name].slice_sizes)
    check(house, [(4, 3), (1, 1), (3, 1)], "qkv")


def test_base_rows_are_those_of_a_step_without_adapters(house: House) -> None:
    """Bit by bit, for the whole projection; an adapter's row is not the base's."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 40, generator=generator).to(house.bank.device)
    weight = torch.randn(80, 40, generator=generator).to(house.bank.device)
    mapping = build_mapping([None, 2, None], [2, 1, 3], house.bank)
    assert mapping is not None
    assert isinstance(mapping.groups["qkv"], ops.LoraWork)
    got = project(x, weight, None, 0, "qkv", StepLora(house.bank, mapping))
    plain = project(x, weight, None, 0, "qkv", None)
    base = [0, 1, 3, 4, 5]
    assert torch.equal(got[base], plain[base])
    delta = house.deltas[2]["qkv"] @ x[2].cpu().double()
    expected = plain[2].cpu().double() + delta
    torch.testing.assert_close(got[2].cpu().double(), expected, atol=3e-5, rtol=3e-5)
    assert delta.abs().max() > 0.1


def packed(house: House, segments: Segments, capacity: WorkCapacity) -> dict[str, ops.LoraWork]:
    out = np.full(capacity.size(len(GROUPS)), 77, dtype=np.int32)
    assert pack_work([s for s, _ in segments], [n for _, n in segments], house.bank, capacity, out)
    buffer = torch.from_numpy(out).to(house.bank.device)
    return work_views(buffer, capacity, list(house.bank.pools))


def test_room_to_spare_changes_no_bit(house: House) -> None:
    segments = [(2, 3), (None, 2), (6, 1), (0, 4)]
    small, large = WorkCapacity(8, 3, 7, 16), WorkCapacity(50, 31, 40, 16)
    for group in GROUPS:
        x, y = inputs(house, segments, group)
        first = run(house, group, packed(house, segments, small)[group], x, y)
        second = run(house, group, packed(house, segments, large)[group], x, y)
        assert torch.equal(first, second)
        assert not torch.equal(first, y)


def test_a_buffer_serves_step_after_step(house: House) -> None:
    """As a captured graph has it: the tensors stay, what is in them is another step's."""
    capacity = WorkCapacity(16, 8, 12, 16)
    buffer = torch.zeros(capacity.size(len(GROUPS)), dtype=torch.int32, device=house.bank.device)
    work = work_views(buffer, capacity, list(house.bank.pools))
    out = np.empty(buffer.shape[0], dtype=np.int32)
    for segments in ([(2, 4), (None, 1)], [(None, 5)], [(1, 1), (6, 2), (None, 1), (1, 1)]):
        assert pack_work(
            [s for s, _ in segments], [n for _, n in segments], house.bank, capacity, out
        )
        buffer.copy_(torch.from_numpy(out))
        x, y = inputs(house, segments, "qkv")
        got = run(house, "qkv", work["qkv"], x, y)
        expected = expected_of(house, segments, "qkv", x, y)
        torch.testing.assert_close(got.cpu().double(), expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tile_rows", [16, 64])
def test_write_only(house: House, group: str, tile_rows: int) -> None:
    """Every row is written and none is read: y is NaN, and base rows become zeros."""
    segments = [(2, 35), (None, 3), (5, 2), (1, 1), (None, 2)]
    capacity = WorkCapacity(64, 8, 16, tile_rows, whole=True)
    x, y = inputs(house, segments, group)
    y.fill_(torch.nan)
    got = run(house, group, packed(house, segments, capacity)[group], x, y, add=False)
    expected = expected_of(house, segments, group, x, torch.zeros_like(y))
    torch.testing.assert_close(got.cpu().double(), expected, atol=3e-5, rtol=3e-5)
    base = [row for row, slot in enumerate(rows_of(segments)) if slot is None]
    assert (got[base] == 0).all()


@pytest.mark.parametrize("bias", [False, True])
def test_long_steps_project_alike(house: House, bias: bool) -> None:
    """The base GEMM runs last where it has no bias, first where it has one."""
    generator = torch.Generator().manual_seed(8)
    segments = [(2, 200), (None, 30), (0, 40)]
    rows = rows_of(segments)
    x = torch.randn(len(rows), 16, generator=generator).to(house.bank.device)
    weight = torch.randn(33, 16, generator=generator).to(house.bank.device)
    offset = torch.randn(33, generator=generator).to(house.bank.device) if bias else None
    mapping = build_mapping([s for s, _ in segments], [n for _, n in segments], house.bank)
    assert mapping is not None
    work = mapping.groups["o"]
    assert isinstance(work, ops.LoraWork)
    assert work.whole
    got = project(x, weight, offset, 0, "o", StepLora(house.bank, mapping))
    base = x.double() @ weight.double().t() + (0 if offset is None else offset.double())
    expected = expected_of(house, segments, "o", x, base)
    torch.testing.assert_close(got.cpu().double(), expected, atol=3e-5, rtol=3e-5)


def test_a_nan_stays_in_its_row(house: House) -> None:
    """Two rows of one tile: what is wrong with one request is not the other's."""
    segments = [(2, 2), (0, 1)]
    x, y = inputs(house, segments, "qkv")
    x[0] = torch.nan
    got = run(house, "qkv", work_of(house, segments)["qkv"], x, y)
    assert got[0].isnan().all()
    assert not got[1:].isnan().any()


def test_rows_of_x_and_y_may_be_strided(house: House) -> None:
    segments = [(2, 2), (None, 1), (6, 1)]
    x, y = inputs(house, segments, "qkv")
    wide_x, wide_y = torch.full((4, 50), torch.nan), torch.full((4, 90), 7.0)
    wide_x, wide_y = wide_x.to(x.device), wide_y.to(y.device)
    wide_x[:, :40], wide_y[:, :80] = x, y
    pool, work = house.bank.pools["qkv"], work_of(house, segments)["qkv"]
    hidden = shrink(wide_x[:, :40], pool.a_layers[0], work)
    expand(hidden, pool.b_layers[0], pool.slice_sizes, work, wide_y[:, :80])
    assert torch.equal(wide_y[:, :80], run(house, "qkv", work, x, y))
    assert (wide_y[:, 80:] == 7).all()
