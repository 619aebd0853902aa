"""Pages in 8 bits: how far they are from the exact ones, and that all that carries them agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rounded_reference import rounded
from torch import Tensor

from branchline.kernels import ops
from branchline.lora.bank import AdapterBank
from branchline.lora.errors import AdapterError
from branchline.lora.fp8_pages import page_bytes, to_pages
from branchline.lora.layers import StepLora, project
from branchline.lora.mapping import build_mapping
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import AdapterWeights, GroupWeights
from branchline.lora.work import build_work
from branchline.tests.support.lora_reference import dense_delta, dense_project, random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=2, hidden_size=96, intermediate_size=160, num_heads=4, num_kv_heads=2, head_dim=24
)
GROUPS = tuple(SHAPES.groups)
MAX_ERROR, LEAST_ERROR = 0.05, 0.02
"""Of a delta, norm over norm; both halves rounded to 3 bits of mantissa come to 3.7 %."""


def weights_of(rank: int, seed: int = 1) -> AdapterWeights:
    return random_weights(SHAPES, dict.fromkeys(GROUPS, rank), torch.Generator().manual_seed(seed))


def in_8_bits(weights: AdapterWeights) -> AdapterWeights:
    return to_pages(weights, SHAPES, torch.float32, ops.FP8)


def error_of(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())


@pytest.mark.parametrize("rank", [1, 8, 16, 40, 64])
@pytest.mark.parametrize("group", GROUPS)
def test_a_delta_is_within_5_percent(group: str, rank: int) -> None:
    """Slice by slice (q, k and v; gate and up)."""
    sizes = SHAPES.groups[group].slice_sizes
    exact, ours = weights_of(rank), in_8_bits(weights_of(rank))
    for layer in range(SHAPES.num_layers):
        pair = [dense_delta(w.groups[group], layer, sizes).split(sizes) for w in (ours, exact)]
        for got, expected in zip(*pair, strict=True):
            assert LEAST_ERROR < error_of(got, expected) < MAX_ERROR


def test_ranks_and_slices_of_any_size_beside_one_another() -> None:
    """What is large in one row or slice takes nothing from what is small in another."""
    exact = weights_of(16).groups["qkv"]
    sizes = SHAPES.groups["qkv"].slice_sizes
    factors = torch.logspace(-6, 6, 16)
    a = exact.a * factors.repeat(3)[:, None]
    b = (
        exact.b
        / factors[:, None]
        * torch.tensor([1e-8, 1.0, 1e8]).repeat_interleave(torch.tensor(sizes))
    )
    uneven = AdapterWeights({"qkv": GroupWeights(a, b)})
    got = dense_delta(in_8_bits(uneven).groups["qkv"], 0, sizes).split(sizes)
    expected = dense_delta(uneven.groups["qkv"], 0, sizes).split(sizes)
    for ours, theirs in zip(got, expected, strict=True):
        assert LEAST_ERROR < error_of(ours, theirs) < MAX_ERROR


def test_pages_are_both_halves_rounded_row_by_row() -> None:
    """By another's arithmetic; ranks that are not there are zeros with scale 1."""
    exact = weights_of(5)
    group, sizes = exact.groups["gate_up"], SHAPES.groups["gate_up"].slice_sizes
    ours = in_8_bits(exact).groups["gate_up"]
    assert (ours.a.dtype, ours.b.dtype) == (ops.FP8, ops.FP8)
    assert ours.scales is not None
    b = torch.cat([rounded(part) for part in group.b.split(sizes, -1)], -1)
    by_hand = GroupWeights(rounded(group.a), b)
    expected = dense_delta(by_hand, 1, sizes)
    assert error_of(dense_delta(ours, 1, sizes), expected) < 1e-6
    unused = torch.arange(32) % 16 >= 5
    assert (ours.scales[..., unused] == 1).all()
    assert (ours.a.float()[:, :, unused] == 0).all()
    assert (ours.a.float().abs().amax(-1)[..., ~unused] == 448).all()
    assert in_8_bits(AdapterWeights({"gate_up": ours})).groups["gate_up"] is ours


def test_numbers_too_large_are_refused() -> None:
    weights = weights_of(4)
    weights.groups["o"].a[0, 0, 0, 0] = 1e30
    weights.groups["o"].b[0, 0, 0, 0] = 1e30
    with pytest.raises(AdapterError, match="o: holds numbers too large for pages in 8 bits"):
        in_8_bits(weights)


def make_bank(ranks: list[int]) -> tuple[AdapterBank, list[AdapterWeights]]:
    """A bank whose free pages are NaN, and what is in its slots."""
    bank = AdapterBank(SHAPES, 2, 12, torch.float32, "cpu", len(ranks) + 1, page_dtype=ops.FP8)
    for pool in bank.pools.values():
        for tensor in (pool.a, pool.b, pool.scales):
            assert tensor is not None
            tensor.fill_(torch.nan)
    adapters = [in_8_bits(weights_of(rank, seed)) for seed, rank in enumerate(ranks)]
    for slot, weights in enumerate(adapters):
        bank.load(slot, weights)
    return bank, adapters


def test_a_bank_holds_half_of_what_it_would_in_16_bits() -> None:
    bank, adapters = make_bank([16, 40])
    per_page = sum(page_bytes(SHAPES, name, ops.FP8) for name in GROUPS)
    assert bank.num_bytes == 12 * per_page
    assert bank.num_used_bytes == 4 * per_page
    assert bank.num_used_bytes == sum(weights.num_bytes for weights in adapters)
    half = sum(page_bytes(SHAPES, name, torch.bfloat16) for name in GROUPS)
    assert 0.5 < per_page / half < 0.53, "scales are 1 in 100 of these small pages"
    with pytest.raises(AssertionError, match="stay as they are"):
        AdapterBank(SHAPES, 2, 4, torch.float32, "cpu").load(0, adapters[0])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "segments",
    [
        [(0, 40), (None, 3), (1, 30)],
        [(0, 1), (1, 1), (None, 2), (2, 1), (0, 1), (1, 2)],
        [(2, 1)],
    ],
)
def test_rows_get_what_their_pages_say(group: str, segments: list[tuple[int | None, int]]) -> None:
    """As runs and as tiles, beside base rows, which are those of no adapters to the bit."""
    bank, adapters = make_bank([16, 40, 3])
    shape = SHAPES.groups[group]
    rows = [slot for slot, length in segments for _ in range(length)]
    generator = torch.Generator().manual_seed(len(rows))
    x = torch.randn(len(rows), shape.in_features, generator=generator)
    weight = torch.randn(shape.out_features, shape.in_features, generator=generator) / 10
    mapping = build_mapping([s for s, _ in segments], [n for _, n in segments], bank)
    assert mapping is not None
    got = project(x, weight, None, 1, group, StepLora(bank, mapping))
    carried = [None if slot is None else adapters[slot].groups[group] for slot in rows]
    expected = dense_project(x, weight, None, carried, 1, shape.slice_sizes)
    torch.testing.assert_close(got.double(), expected, atol=3e-5, rtol=3e-5)
    base = [row for row, slot in enumerate(rows) if slot is None]
    assert torch.equal(got[base], project(x, weight, None, 1, group, None)[base])


def test_packed_work_on_a_cpu() -> None:
    bank, adapters = make_bank([16, 40])
    pool = bank.pools["qkv"]
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(3))
    work = build_work([1, None, 0], [1, 1, 1], bank)["qkv"]
    y = torch.zeros(3, sum(pool.slice_sizes))
    hidden = ops.shrink(x, pool.a_layers[0], work, pool.scale_layers[0])
    ops.expand(hidden, pool.b_layers[0], pool.slice_sizes, work, y)
    for row, slot in ((0, 1), (2, 0)):
        delta = dense_delta(adapters[slot].groups["qkv"], 0, pool.slice_sizes)
        torch.testing.assert_close(y[row].double(), delta @ x[row].double(), atol=3e-5, rtol=3e-5)
    assert (y[1] == 0).all()


def test_what_is_dense_stays_as_it_is() -> None:
    from branchline.lora.weights import DenseWeights

    vectors = torch.randn(SHAPES.vectors.size, generator=torch.Generator().manual_seed(1))
    dense = DenseWeights(vectors, tables={"embed_a": vectors[:32].view(4, 8)})
    got = to_pages(replace(weights_of(4), dense=dense), SHAPES, torch.bfloat16, ops.FP8).dense
    assert got is not None
    assert got.vectors is vectors
    assert got.tables["embed_a"].dtype == torch.bfloat16
