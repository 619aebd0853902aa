"""project(): every row its own adapter, whatever the mix; base rows as if no adapter existed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from branchline.lora.bank import AdapterBank
from branchline.lora.layers import StepLora, project
from branchline.lora.mapping import AdapterMapping, build_mapping
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import AdapterWeights
from branchline.tests.support.lora_reference import dense_project, random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=2, hidden_size=40, intermediate_size=56, num_heads=4, num_kv_heads=2, head_dim=12
)
GROUPS = tuple(SHAPES.groups)
LAYER = 1
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
RANKS = (1, 8, 16, 17, 64, 5, 33, 16)


@dataclass(frozen=True)
class House:
    """A loaded bank and the weights it should hold, slot by slot."""

    bank: AdapterBank
    adapters: list[AdapterWeights]


def make_house(ranks: Sequence[dict[str, int]], dtype: torch.dtype = torch.float32) -> House:
    generator = torch.Generator().manual_seed(1)
    adapters = [random_weights(SHAPES, rank, generator) for rank in ranks]
    bank = AdapterBank(SHAPES, SHAPES.num_layers, 40, dtype, "cpu")
    for slot, weights in enumerate(adapters):
        bank.load(slot, weights)
    return House(bank, adapters)


@pytest.fixture(scope="module")
def house() -> House:
    return make_house([dict.fromkeys(GROUPS, rank) for rank in RANKS])


def route(house: House, segments: Sequence[tuple[int | None, int]]) -> AdapterMapping | None:
    return build_mapping([s for s, _ in segments], [n for _, n in segments], house.bank)


def assert_matches(
    house: House,
    segments: Sequence[tuple[int | None, int]],
    group: str,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
) -> None:
    shape = SHAPES.groups[group]
    rows = [slot for slot, length in segments for _ in range(length)]
    generator = torch.Generator().manual_seed(len(rows))
    x = torch.randn(len(rows), shape.in_features, generator=generator).to(dtype)
    weight = torch.randn(shape.out_features, shape.in_features, generator=generator)
    weight = (weight / shape.in_features**0.5).to(dtype)
    offset = torch.randn(shape.out_features, generator=generator).to(dtype) if bias else None
    mapping = route(house, segments)
    lora = None if mapping is None else StepLora(house.bank, mapping)
    got = project(x, weight, offset, LAYER, group, lora)
    carried = [None if s is None else house.adapters[s].groups.get(group) for s in rows]
    expected = dense_project(x, weight, offset, carried, LAYER, shape.slice_sizes)
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
    base = [row for row, group_weights in enumerate(carried) if group_weights is None]
    assert_bit_equal(got[base], F.linear(x, weight, offset)[base])


def assert_bit_equal(a: Tensor, b: Tensor) -> None:
    """Equal to the sign of zero."""
    integers = {4: torch.int32, 2: torch.int16}[a.element_size()]
    assert torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def zipf(count: int, rng: random.Random) -> list[int]:
    return rng.choices(range(len(RANKS)), [1 / (i + 1) ** 1.2 for i in range(len(RANKS))], k=count)


RNG = random.Random(7)
PATTERNS: dict[str, list[tuple[int | None, int]]] = {
    "one row": [(2, 1)],
    "identical": [(4, 1)] * 32,
    "distinct": [(slot, 1) for slot in range(len(RANKS))],
    "uniform": [(i % len(RANKS), 1) for i in range(40)],
    "zipf": [(slot, 1) for slot in zipf(40, RNG)],
    "skewed": [(2, 1) if i % 8 else (i // 8, 1) for i in range(48)],
    "with base rows": [(None if i % 3 else i % len(RANKS), 1) for i in range(40)],
    "base around": [(None, 5), (0, 1), (1, 2), (6, 3), (0, 1), (None, 4)],
    "long runs": [(0, 70), (4, 129), (None, 3), (0, 65)],
    "prefill and decode": [(3, 100), *[(i % len(RANKS), 1) for i in range(30)], (None, 20)],
    "chunks": [(i % len(RANKS), 17) for i in range(24)],
    "empty segments": [(0, 0), (1, 1), (None, 0), (1, 2), (5, 0), (2, 1), (3, 1), (None, 1)],
    "activated": [(None, 5), (2, 11), (None, 40), (2, 1), (None, 0), (2, 3), (3, 1), (None, 1)],
    "one prompt in pieces": [(1, 1), (2, 1), (3, 1), (None, 37), (2, 3), (None, 37), (2, 60)],
    "activated at the very start": [(None, 0), (4, 17), (None, 0), (4, 1), (None, 16), (4, 0)],
    "every row base": [(None, 9)],
    "no rows": [(1, 0), (None, 0)],
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_dense_float64(house: House, pattern: str, group: str) -> None:
    assert_matches(house, PATTERNS[pattern], group)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["identical", "uniform", "long runs", "with base rows"])
def test_low_precision(pattern: str, dtype: torch.dtype) -> None:
    house = make_house([dict.fromkeys(GROUPS, rank) for rank in RANKS], dtype)
    rounded = [
        AdapterWeights(
            {
                name: type(group)(group.a.to(dtype).float(), group.b.to(dtype).float())
                for name, group in adapter.groups.items()
            }
        )
        for adapter in house.adapters
    ]
    assert_matches(House(house.bank, rounded), PATTERNS[pattern], "qkv", dtype, bias=True)


def test_low_precision_is_rounded_once() -> None:
    """The sum over 64 ranks is float32, so it is nearer the truth than bfloat16 sums can be."""
    house = make_house([dict.fromkeys(GROUPS, 64)] * 4, torch.bfloat16)
    segments: list[tuple[int | None, int]] = [(i % 4, 1) for i in range(16)]
    mapping = route(house, segments)
    assert mapping is not None
    x = torch.randn(16, 40).bfloat16()
    weight = torch.zeros(96, 40, dtype=torch.bfloat16)
    got = project(x, weight, None, LAYER, "qkv", StepLora(house.bank, mapping))
    pool = house.bank.pools["qkv"]
    for row in range(16):
        pages = list(pool.pages(row % 4))
        a = pool.a_layers[LAYER][pages].double().unflatten(1, (3, 16)).transpose(0, 1).flatten(1, 2)
        b = pool.b_layers[LAYER][pages].double().flatten(0, 1).split(pool.slice_sizes, dim=1)
        exact = torch.cat([x[row].double() @ a[i].t() @ b[i] for i in range(3)])
        error = (got[row].double() - exact).abs()
        assert (error <= exact.abs() * 2**-8 + 1e-5).all()


def test_mixed_groups_and_ranks() -> None:
    """Attention-only, one-group and all-linear adapters side by side."""
    house = make_house(
        [{"qkv": 8, "o": 20}, {"down": 64}, dict.fromkeys(GROUPS, 16), {"gate_up": 3, "qkv": 40}]
    )
    segments: list[tuple[int | None, int]] = [
        (None if i % 5 == 4 else i % 5, 1 + i % 2) for i in range(30)
    ]
    for group in GROUPS:
        assert_matches(house, segments, group)


def test_pages_in_any_order() -> None:
    """Slots loaded into the holes that others left still read their own pages."""
    house = make_house([dict.fromkeys(GROUPS, 16) for _ in range(10)])
    generator = torch.Generator().manual_seed(9)
    for slot in (1, 3, 4, 8):
        house.bank.unload(slot)
    for slot, rank in ((3, 64), (1, 48), (8, 16)):
        house.adapters[slot] = random_weights(SHAPES, dict.fromkeys(GROUPS, rank), generator)
        house.bank.load(slot, house.adapters[slot])
    used = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for group in ("qkv", "down"):
        assert_matches(house, [(used[i % 9], 1) for i in range(40)], group)
        assert_matches(house, [(3, 80), (1, 1), (8, 90), (None, 2), (9, 1), (1, 70)], group)


segment = st.tuples(
    st.one_of(st.none(), st.integers(0, len(RANKS) - 1)),
    st.one_of(st.integers(0, 4), st.integers(0, 90)),
)


@settings(max_examples=60, deadline=None)
@given(segments=st.lists(segment, max_size=40), group=st.sampled_from(["qkv", "o"]))
def test_any_batch(house: House, segments: list[tuple[int | None, int]], group: str) -> None:
    assert_matches(house, segments, group)


def test_base_rows_are_bit_equal_to_a_batch_without_adapters(house: House) -> None:
    """Even where the base output is minus zero or NaN."""
    x = torch.randn(6, 40)
    x[1], x[4] = 0.0, torch.nan
    weight = -torch.rand(SHAPES.groups["qkv"].out_features, 40)
    mapping = route(house, [(0, 1), (None, 1), (1, 1), (2, 1), (None, 2)])
    assert mapping is not None
    got = project(x, weight, None, LAYER, "qkv", StepLora(house.bank, mapping))
    base = F.linear(x, weight)
    assert_bit_equal(got[[1, 4, 5]], base[[1, 4, 5]])
    assert got[[0, 2, 3]].isfinite().all()
    assert not torch.isclose(got[[0, 2, 3]], base[[0, 2, 3]]).all(1).any()


def test_without_lora_it_is_one_linear(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args) or real(*args))
    x, weight = torch.randn(3, 40), torch.randn(48, 40)
    with torch.profiler.profile() as profile:
        y = project(x, weight, None, 0, "o", None)
    assert len(calls) == 1
    assert torch.equal(y, real(x, weight))
    names = {event.name for event in profile.events() if event.cpu_parent is None}
    assert names == {"aten::linear"}


def test_the_number_of_calls_does_not_grow_with_adapters() -> None:
    """Decode over many adapters is a fixed number of tensor operations."""
    house = make_house([dict.fromkeys(GROUPS, 16) for _ in range(30)])
    counts = []
    for adapters in (5, 30):
        mapping = route(house, [(i % adapters, 1) for i in range(60)])
        assert mapping is not None
        with torch.profiler.profile() as profile:
            x = torch.randn(60, 48)
            project(x, torch.randn(40, 48), None, 0, "o", StepLora(house.bank, mapping))
        counts.append(sum(event.cpu_parent is None for event in profile.events()))
    assert counts[0] == counts[1]
