"""The filters' floors, against plain float64, transformers and cases worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import sampling_rule
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from branchline.engine.types import SamplingParams
from branchline.kernels import ops


@dataclass(frozen=True, slots=True)
class Filters:
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def random_logits(num_rows: int, vocab_size: int, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def filter_floors(logits: Tensor, filters: Filters, temperature: float = 1.0) -> Tensor:
    def column(value: float) -> Tensor:
        return torch.full((len(logits),), value, dtype=torch.float64)

    top_k = torch.full((len(logits),), filters.top_k)
    return ops.filter_floors(
        logits, column(temperature), top_k, column(filters.top_p), column(filters.min_p)
    )


@settings(max_examples=120)
@given(
    vocab_size=st.sampled_from([2, 10, 255, 256, 257, 600, 3000, 9000]),
    spread=st.sampled_from([0.01, 1.0, 3.0, 12.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 50, 256, 257, 8192, 8500, 10**6]),
    top_p=st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_filters_keep_what_the_rule_keeps(
    vocab_size: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> None:
    """Up to float32: ids that 1e-5 of a logit would move over an edge may go either way."""
    logits = random_logits(2, vocab_size, spread, seed)
    check_filters(logits, Filters(top_k, top_p, min_p), temperature, 1e-5 * max(1.0, spread))


def check_filters(logits: Tensor, filters: Filters, temperature: float, slack: float) -> None:
    floors = filter_floors(logits, filters, temperature)
    params = SamplingParams(
        temperature=temperature, top_k=filters.top_k, top_p=filters.top_p, min_p=filters.min_p
    )
    for row, floor in zip(logits.double().numpy(), floors.tolist(), strict=True):
        kept = row >= floor
        assert not (sampling_rule.keep(row, params, -slack) & ~kept).any()
        assert not (kept & ~sampling_rule.keep(row, params, slack)).any()
        assert kept.any()


@pytest.mark.parametrize(
    "filters",
    [
        Filters(top_p=0.2),
        Filters(top_p=0.9),
        Filters(top_p=0.999),
        Filters(top_k=300),
        Filters(top_k=300, top_p=0.5),
        Filters(top_k=8500),
        Filters(top_k=8500, top_p=0.99),
        Filters(min_p=0.1),
        Filters(min_p=0.1, top_p=0.97),
        Filters(min_p=0.4, top_k=900, top_p=0.97),
    ],
)
def test_filters_that_keep_much(filters: Filters) -> None:
    """More than a first look at the largest logits shows."""
    check_filters(random_logits(3, 9000, spread=1.0), filters, temperature=1.0, slack=1e-5)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (Filters(), 6),
        (Filters(top_k=1), 2),  # a tie for the last place stays
        (Filters(top_k=3), 3),
        (Filters(top_p=0.25), 2),  # so does one here
        (Filters(top_p=0.66), 2),
        (Filters(top_p=0.67), 3),
        (Filters(top_p=0.84), 6),
        (Filters(min_p=0.49), 3),
        (Filters(min_p=0.51), 2),
        # In order: once three are left, the first two hold 4/5 and no longer 2/3.
        (Filters(min_p=0.49, top_p=0.79), 2),
        (Filters(top_k=3, top_p=0.79), 2),
        (Filters(top_k=3, top_p=0.81), 3),
        (Filters(top_p=0.79), 3),
    ],
)
def test_filters_one_by_one_and_in_order(filters: Filters, kept: int) -> None:
    weights = torch.tensor([[1 / 18, 1 / 6, 1 / 3, 1 / 18, 1 / 3, 1 / 18]])
    logits = weights.log()
    assert int((logits >= filter_floors(logits, filters)[:, None]).sum()) == kept


def test_rows_without_filters_have_no_floor() -> None:
    logits, ones = random_logits(4, 600, spread=1.0), torch.ones(4, dtype=torch.float64)
    top_k, top_p = torch.tensor([0, 5, -1, 0]), torch.tensor([1.0, 1.0, 2.0, 0.5])
    floors = ops.filter_floors(logits, ones, top_k, top_p.double(), ones * 0)
    assert floors[[0, 2]].tolist() == [-math.inf, -math.inf]
    assert floors[1] == logits[1].topk(5).values[-1]
    assert floors[3] == filter_floors(logits[3:], Filters(top_p=0.5))[0]


@pytest.mark.parametrize(
    ("filters", "warper"),
    [
        (Filters(top_k=7), TopKLogitsWarper(7)),
        (Filters(top_k=300), TopKLogitsWarper(300)),
        (Filters(top_p=0.8), TopPLogitsWarper(0.8)),
        (Filters(top_p=0.1), TopPLogitsWarper(0.1)),
        (Filters(min_p=0.05), MinPLogitsWarper(0.05)),
    ],
)
def test_filters_agree_with_transformers(filters: Filters, warper: object) -> None:
    logits = random_logits(8, 1000, spread=2.0)
    kept = logits >= filter_floors(logits, filters)[:, None]
    assert torch.equal(kept, warper(None, logits) > -math.inf)  # type: ignore[operator]
