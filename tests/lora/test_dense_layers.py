"""project and normalize over rows whose adapters scale, shift and norm; base rows as ever."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.dense_mapping import build_step_dense
from branchline.lora.layers import Norm, StepLora, add_and_normalize, normalize, project
from branchline.lora.mapping import AdapterMapping, build_mapping
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import AdapterWeights, DenseWeights
from branchline.tests.support.dense_parts import base_norm, random_vectors
from branchline.tests.support.lora_reference import dense_project, random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=2,
    hidden_size=24,
    intermediate_size=40,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qk_norm=True,
)
LAYER = 1
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
Segments = list[tuple[int | None, int]]

PAIRS: dict[int, dict[str, int]] = {0: {"qkv": 8, "o": 20}, 1: {"qkv": 16}, 3: {"down": 4}}
CHANGES: dict[int, tuple[list[str], list[str]]] = {
    1: (["qkv", "gate_up"], []),
    2: (["qkv", "down"], ["mlp_norm", "q_norm"]),
    3: (["o"], ["final_norm"]),
    4: ([], ["attention_norm", "k_norm"]),
}
"""Slot 0 is a plain LoRA; 1 and 3 have pairs and vectors; 2 and 4 vectors alone; 5 is empty."""


@dataclass(frozen=True)
class House:
    bank: AdapterBank
    adapters: dict[int, AdapterWeights]

    def step(self, segments: Segments) -> StepLora | None:
        slots, lengths = [s for s, _ in segments], [n for _, n in segments]
        mapping = build_mapping(slots, lengths, self.bank)
        dense = build_step_dense(slots, lengths, [False] * len(slots), self.bank.dense)
        return StepLora(self.bank, mapping or AdapterMapping({}), dense)

    def vectors(self, slot: int | None) -> DenseWeights | None:
        return self.adapters[slot].dense if slot in self.adapters else None


def make_house(dtype: torch.dtype) -> House:
    generator = torch.Generator().manual_seed(4)
    bank = AdapterBank(SHAPES, SHAPES.num_layers, 20, dtype, "cpu", 6, dense_bytes=100_000)
    assert bank.dense is not None
    bank.dense._arena.fill_(255)  # NaN
    adapters = {}
    for slot in range(5):
        pairs = random_weights(SHAPES, PAIRS.get(slot, {}), generator).as_dtype(dtype)
        changes = CHANGES.get(slot)
        dense = random_vectors(SHAPES, generator, *changes) if changes else None
        bank.load(slot, AdapterWeights(pairs.groups, dense))
        wide = AdapterWeights(pairs.groups).as_dtype(torch.float32)
        adapters[slot] = AdapterWeights(wide.groups, dense)
    return House(bank, adapters)


HOUSES = {dtype: make_house(dtype) for dtype in TOLERANCE}


def rows_of(segments: Segments) -> list[int | None]:
    return [slot for slot, length in segments for _ in range(length)]


def assert_bit_equal(a: Tensor, b: Tensor) -> None:
    integers = {4: torch.int32, 2: torch.int16}[a.element_size()]
    assert torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def assert_projects(segments: Segments, group: str, dtype: torch.dtype, bias: bool) -> None:
    house, shape = HOUSES[dtype], SHAPES.groups[group]
    rows = rows_of(segments)
    generator = torch.Generator().manual_seed(len(rows))
    x = torch.randn(len(rows), shape.in_features, generator=generator).to(dtype)
    weight = torch.randn(shape.out_features, shape.in_features, generator=generator)
    weight = (weight / shape.in_features**0.5).to(dtype)
    offset = torch.randn(shape.out_features, generator=generator).to(dtype) if bias else None
    got = project(x, weight, offset, LAYER, group, house.step(segments))
    pairs = [house.adapters[s].groups.get(group) if s in house.adapters else None for s in rows]
    expected = dense_project(x, weight, offset, pairs, LAYER, shape.slice_sizes)
    layout = SHAPES.vectors
    for row, slot in enumerate(rows):
        dense = house.vectors(slot)
        if dense is not None and dense.vectors is not None:
            start, size = layout.scale(group, LAYER)
            expected[row] *= dense.vectors[start : start + size].double()
            start, size = layout.shift(group, LAYER)
            expected[row] += dense.vectors[start : start + size].double()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
    base = [row for row, slot in enumerate(rows) if slot not in house.adapters]
    assert_bit_equal(got[base], ops.linear(x, weight, offset)[base])
    # A plain LoRA's rows are what they are in a step that nothing dense is in.
    if house.step(segments).dense is not None:
        without = [(None if slot in CHANGES else slot, length) for slot, length in segments]
        plain = [row for row, slot in enumerate(rows) if slot == 0]
        alone = project(x, weight, offset, LAYER, group, house.step(without))
        torch.testing.assert_close(got[plain], alone[plain])


PATTERNS: dict[str, Segments] = {
    "alone": [(1, 1)],
    "each once": [(0, 1), (1, 1), (2, 1), (None, 1), (3, 1), (4, 1), (5, 1)],
    "long": [(2, 40), (None, 17), (1, 20), (0, 3)],
    "chunk and decodes": [(1, 1), (None, 1), (2, 1), (4, 1), (2, 1), (0, 1), (3, 30), (None, 5)],
    "neighbours": [(2, 1)] * 9 + [(None, 1)] + [(3, 2)] * 4,
    "only base": [(None, 4), (5, 2)],
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("group", SHAPES.groups)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_are_scaled_and_shifted(
    pattern: str, group: str, dtype: torch.dtype, bias: bool
) -> None:
    assert_projects(PATTERNS[pattern], group, dtype, bias)


segment = st.tuples(
    st.one_of(st.none(), st.integers(0, 5)), st.one_of(st.integers(0, 3), st.integers(0, 40))
)


@settings(max_examples=60)
@given(segments=st.lists(segment, max_size=20), group=st.sampled_from(["qkv", "o"]))
def test_any_batch(segments: Segments, group: str) -> None:
    if rows_of(segments):
        assert_projects(segments, group, torch.float32, bias=True)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["attention_norm", "mlp_norm", "q_norm", "final_norm"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_are_normed_by_their_own_weights(
    pattern: str, name: str, dtype: torch.dtype, offset: float
) -> None:
    house, segments = HOUSES[dtype], PATTERNS[pattern]
    rows, layer = rows_of(segments), 0 if name == "final_norm" else LAYER
    start, size = SHAPES.vectors.norm(name, layer)
    weight = base_norm(name, layer, size).to(dtype)
    norm = Norm(weight, 1e-6, offset, name, layer)
    shape = (len(rows), 4, size) if name == "q_norm" else (len(rows), size)
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    step = house.step(segments)
    got = normalize(x, norm, step)
    expected = ops.rms_norm(x, weight, 1e-6, offset)
    for row, slot in enumerate(rows):
        dense = house.vectors(slot)
        if dense is None or dense.vectors is None or name not in dense.norms:
            assert_bit_equal(got[row], expected[row])
        else:
            own = dense.vectors[start : start + size]
            assert not torch.allclose(own, weight.float())
            exact = ops.rms_norm(x[row].double(), own.double(), 1e-6, offset)
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(
                got[row].double(), exact.double(), atol=tolerance, rtol=tolerance
            )
    total, both = add_and_normalize(x, residual, norm, step)
    assert_bit_equal(both, x + residual)
    assert_bit_equal(total, normalize(x + residual, norm, step))


def test_steps_without_anything_dense_do_no_more_than_before() -> None:
    house = HOUSES[torch.float32]
    step = house.step([(0, 2), (None, 3)])
    assert step is not None
    assert step.dense is None
    norm = Norm(base_norm("mlp_norm", 0, 24), 1e-6, 0.0, "mlp_norm")
    counts = []
    for lora in (None, step):
        with torch.profiler.profile() as profile:
            normalize(torch.ones(5, 24), norm, lora)
        counts.append(sum(event.cpu_parent is None for event in profile.events()))
    assert counts[0] == counts[1]


def test_the_number_of_calls_does_not_grow_with_adapters() -> None:
    generator = torch.Generator().manual_seed(1)
    bank = AdapterBank(SHAPES, 2, 1, torch.float32, "cpu", 30, dense_bytes=1_000_000)
    for slot in range(30):
        bank.load(slot, AdapterWeights({}, random_vectors(SHAPES, generator, ["o"], ["mlp_norm"])))
    house, counts = House(bank, {}), []
    norm = Norm(base_norm("mlp_norm", 0, 24), 1e-6, 0.0, "mlp_norm")
    for adapters in (5, 30):
        step = house.step([(i % adapters, 1) for i in range(60)])
        with torch.profiler.profile() as profile:
            y = project(torch.randn(60, 32), torch.randn(24, 32), None, 0, "o", step)
            normalize(y, norm, step)
        counts.append(sum(event.cpu_parent is None for event in profile.events()))
    assert counts[0] == counts[1]
