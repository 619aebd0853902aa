"""The whole sampler on the kernels: it follows the rule, and says what it says on the twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sampling_rows import sampling_rows
from sampling_rule import Context, decide

from branchline.engine.sampler import NO_TOKEN_ID, Sampler, SamplingRow
from branchline.engine.types import SamplingParams
from branchline.kernels import ops
from branchline.kernels import sample as twin

VOCAB_SIZE = 300
PLAIN = SamplingParams(temperature=0.8, seed=11)
KINDS = [
    SamplingParams(temperature=0.0, logprobs=0),
    replace(PLAIN, logprobs=3),
    replace(PLAIN, seed=-5, temperature=1.7),
    replace(PLAIN, top_k=40, top_p=0.9, min_p=0.01, logprobs=20),
    replace(PLAIN, repetition_penalty=1.3, frequency_penalty=0.5, min_tokens=8),
    replace(PLAIN, temperature=0.0, top_k=3, top_p=0.5, logit_bias={7: 9.0, 8: -3.0}, logprobs=5),
    replace(PLAIN, top_p=0.7, presence_penalty=0.4, stop_token_ids=(9,), min_tokens=4),
    replace(PLAIN, top_k=5, seed=2**63 + 9),
]


OPS = (
    *("top_tokens", "sample_tokens", "filter_floors", "edit_logits", "report_logprobs"),
    "apply_token_mask",
)


def make_rows(num_rows: int) -> list[SamplingRow]:
    return sampling_rows(KINDS, num_rows, eos_token_id=VOCAB_SIZE - 1)


def make_logits(num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, VOCAB_SIZE, generator=generator) * 2


@pytest.fixture
def on_twins(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What makes the sampler use the twins, until its ``undo``."""
    for name in OPS:
        monkeypatch.setattr(ops, name, getattr(twin, name))
    return monkeypatch


def test_a_mixed_batch_is_as_on_the_twins_and_follows_the_rule(
    device: torch.device, on_twins: pytest.MonkeyPatch
) -> None:
    logits, rows = make_logits(8), make_rows(8)
    logits[3, 5:50] = -math.inf  # as ids that an adapter does not have
    expected = Sampler().sample(logits.clone(), rows)
    on_twins.undo()
    pending = Sampler().launch(logits.to(device, copy=True), rows)
    sampled = pending.result()
    assert sampled.token_ids == pending.token_ids.tolist() == expected.token_ids
    assert not sampled.errors
    for i, (entry, twins) in enumerate(zip(sampled.logprobs, expected.logprobs, strict=True)):
        row = rows[i]
        context = Context([1, 2, 3, 4], [4, 4, 5], [VOCAB_SIZE - 1], row.choice_index)
        accepted = decide(logits[i].numpy(), row.params, context, margin=1e-3).acceptable
        assert sampled.token_ids[i] in accepted
        assert (entry is None) == (twins is None) == (row.params.logprobs is None)
        if entry is not None and twins is not None:
            assert (entry.token_id, entry.rank) == (twins.token_id, twins.rank)
            assert entry.top_token_ids == twins.top_token_ids
            assert len(entry.top_token_ids) == row.params.logprobs
            assert entry.logprob == pytest.approx(twins.logprob, abs=1e-5)
            assert entry.top_logprobs == pytest.approx(twins.top_logprobs, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_fail_alone(device: torch.device, bad: float) -> None:
    logits, rows = make_logits(5), make_rows(5)
    good = Sampler().sample(logits.to(device, copy=True), rows)
    logits[1], logits[3] = bad, bad
    pending = Sampler().launch(logits.to(device, copy=True), rows)
    sampled = pending.result()
    assert list(sampled.errors) == [1, 3]
    assert sampled.token_ids[1] == sampled.token_ids[3] == NO_TOKEN_ID
    assert pending.token_ids[[1, 3]].tolist() == [0, 0]
    assert sampled.logprobs[1] is None
    assert sampled.logprobs[3] is None
    for i in (0, 2, 4):
        assert sampled.token_ids[i] == good.token_ids[i]
        assert sampled.logprobs[i] == good.logprobs[i]


def test_a_warm_up_runs_every_op(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(OPS)
    calls: list[tuple[str, bool]] = []

    def watch(name: str) -> Callable[..., Any]:
        op = getattr(ops, name)

        def watched(*arguments: Any) -> Any:
            calls.append((name, arguments[-1] is None))
            return op(*arguments)

        return watched

    for name in names:
        monkeypatch.setattr(ops, name, watch(name))
    Sampler().warm_up(make_logits(1).to(device))
    assert {name for name, _ in calls} == names
    assert {no_floors for name, no_floors in calls if name == "sample_tokens"} == {False, True}
