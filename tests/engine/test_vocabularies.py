"""Rows of several vocabularies in one batch: ids that a row does not have are never chosen."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from branchline.engine.sampler import Sampler, SamplingRow
from branchline.engine.types import SamplingParams

WIDTHS = (300, 310, 290, 384)

any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 5.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([0, 1, 5, 280, 295, 305, 400]),
    min_p=st.sampled_from([0.0, 0.02]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.5]),
    presence_penalty=st.sampled_from([0.0, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, 289), st.floats(-20, 20), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    min_tokens=st.sampled_from([0, 4]),
    logprobs=st.sampled_from([None, 0, 3, 20]),
)


def make_row(params: SamplingParams, prompt: tuple[int, ...] = (1, 2)) -> SamplingRow:
    return SamplingRow(
        params=params,
        position=5,
        prompt_token_ids=prompt,
        output_token_ids=(4, 4, 5),
        eos_token_ids=(288,),
    )


def make_logits(widths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(width, generator=generator) for width in widths]


def widen(logits: list[Tensor]) -> Tensor:
    widest = max(map(len, logits))
    result = torch.full((len(logits), widest), -math.inf)
    for row, own in enumerate(logits):
        result[row, : len(own)] = own
    return result


@settings(max_examples=150)
@given(
    params=st.lists(any_params, min_size=1, max_size=6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_each_row_is_what_it_is_alone(
    params: list[SamplingParams], seed: int, data: st.DataObject
) -> None:
    """Token, logprobs, ranks and best ids, to the last bit."""
    widths = [data.draw(st.sampled_from(WIDTHS)) for _ in params]
    logits, rows = make_logits(widths, seed), [make_row(each) for each in params]
    mixed = Sampler().sample(widen(logits), rows)
    for i, (own, row) in enumerate(zip(logits, rows, strict=True)):
        alone = Sampler().sample(own.clone()[None], [row])
        assert mixed.token_ids[i] == alone.token_ids[0]
        assert mixed.logprobs[i] == alone.logprobs[0]
    assert not mixed.errors


def test_a_hot_row_never_leaves_its_vocabulary() -> None:
    logits = make_logits([20, 384], 0)
    for seed in range(200):
        rows = [make_row(SamplingParams(temperature=50.0, seed=seed), prompt=())] * 2
        token_ids = Sampler().sample(widen(logits), rows).token_ids
        assert token_ids[0] < 20


def test_penalties_and_biases_of_ids_that_a_row_has_not_change_nothing() -> None:
    logits = make_logits([300, 384], 1)
    plain = SamplingParams(temperature=0.0, logprobs=2)
    odd = SamplingParams(
        temperature=0.0,
        logprobs=2,
        repetition_penalty=0.1,
        frequency_penalty=-2.0,
        logit_bias={350: 100.0, 310: -100.0},
    )
    row = SamplingRow(
        params=odd, position=3, prompt_token_ids=(340, 350), output_token_ids=(350, 383)
    )
    sampled = Sampler().sample(widen(logits), [row, make_row(plain)])
    alone = Sampler().sample(logits[0].clone()[None], [make_row(plain)])
    assert sampled.token_ids[0] == alone.token_ids[0]
    assert sampled.logprobs[0] == alone.logprobs[0]


@pytest.mark.parametrize("wanted", [4, 5, 10])
def test_more_best_ids_than_a_row_has(wanted: int) -> None:
    logits = make_logits([5, 300], 2)
    rows = [make_row(SamplingParams(temperature=0.0, logprobs=wanted), prompt=())] * 2
    first, second = Sampler().sample(widen(logits), rows).logprobs
    assert first is not None
    assert second is not None
    assert len(first.top_token_ids) == min(wanted, 5)
    assert all(math.isfinite(logprob) for logprob in first.top_logprobs)
    assert len(second.top_token_ids) == wanted
