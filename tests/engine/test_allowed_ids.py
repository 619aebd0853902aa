"""Rows that may choose only some ids, and words that are never completed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from branchline.engine import allowed_ids
from branchline.engine.allowed_ids import MAX_REMEMBERED, pack_allowed
from branchline.engine.finish import can_run_ahead
from branchline.engine.logit_edits import completing_ids
from branchline.engine.sampler import NO_TOKEN_ID, Sampler, SamplingRow
from branchline.engine.types import SamplingParams
from branchline.kernels import ops

VOCAB_SIZE = 50


def row(params: SamplingParams, output: tuple[int, ...] = ()) -> SamplingRow:
    return SamplingRow(
        params=params,
        position=3 + len(output),
        prompt_token_ids=[1, 2, 3],
        output_token_ids=list(output),
        eos_token_ids=[49],
    )


def test_only_the_rows_that_are_limited_change() -> None:
    logits = torch.randn(4, VOCAB_SIZE)
    expected = logits.clone()
    for index, ids in {1: (5, 7), 3: (0,)}.items():
        forbidden = [one for one in range(VOCAB_SIZE) if one not in ids]
        expected[index, forbidden] = -torch.inf
    packed = pack_allowed({1: (7, 5, 7, 99), 3: (0,)}, VOCAB_SIZE)
    ops.apply_token_mask(logits, *(torch.from_numpy(array) for array in packed))
    assert torch.equal(logits, expected)
    assert pack_allowed({}, VOCAB_SIZE) == ()


def allowed_of(packed: Any, vocab_size: int) -> dict[int, list[int]]:
    """What each row may be, as the kernel reads it."""
    rows, bits = (torch.from_numpy(array) for array in packed)
    logits = torch.zeros(int(rows.max()) + 1, vocab_size)
    ops.apply_token_mask(logits, rows, bits)
    return {row: torch.nonzero(logits[row] == 0).flatten().tolist() for row in rows.tolist()}


def test_a_list_is_looked_at_once_however_many_steps_there_are() -> None:
    class Counted(tuple[int, ...]):
        num_looks = 0

        def __iter__(self) -> Iterator[int]:
            Counted.num_looks += 1
            return super().__iter__()

    ids = Counted((7, 5, 7, 99, -1))
    for step in range(5):
        packed = pack_allowed({step: ids, step + 3: ids}, VOCAB_SIZE)
        assert allowed_of(packed, VOCAB_SIZE) == {step: [5, 7], step + 3: [5, 7]}
    assert Counted.num_looks == 1
    assert allowed_of(pack_allowed({0: ids}, 6), 6) == {0: [5]}


def test_what_is_remembered_is_bounded_and_never_mistaken() -> None:
    for step in range(3 * MAX_REMEMBERED):
        only = step % VOCAB_SIZE
        packed = pack_allowed({0: (only,), 1: (-1,)}, VOCAB_SIZE)
        if step % 50 < 2:
            assert allowed_of(packed, VOCAB_SIZE) == {0: [only], 1: []}
    assert len(allowed_ids._remembered) == MAX_REMEMBERED
    changing = [1]
    assert allowed_of(pack_allowed({0: changing}, VOCAB_SIZE), VOCAB_SIZE) == {0: [1]}
    changing[0] = 2
    assert allowed_of(pack_allowed({0: changing}, VOCAB_SIZE), VOCAB_SIZE) == {0: [2]}


def test_logprobs_are_those_of_the_model() -> None:
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    free = torch.log_softmax(logits[0], -1)
    params = SamplingParams(temperature=0, allowed_token_ids=(5, 7), logprobs=1)
    sampled = Sampler().sample(logits.clone(), [row(params)])
    best = max((5, 7), key=lambda one: float(logits[0, one]))
    assert sampled.token_ids == [best]
    assert sampled.logprobs[0] is not None
    assert sampled.logprobs[0].logprob == pytest.approx(float(free[best]), abs=1e-5)


def test_other_edits_hold_beside_it() -> None:
    logits = torch.zeros(3, VOCAB_SIZE)
    rows = [
        row(SamplingParams(temperature=0, allowed_token_ids=(5, 7), logit_bias={5: -1.0})),
        row(SamplingParams(temperature=0, logit_bias={9: 1.0})),
        row(SamplingParams(temperature=0, allowed_token_ids=(5, 49), min_tokens=1)),
    ]
    assert Sampler().sample(logits, rows).token_ids == [7, 9, 5]


def test_nothing_left_is_that_rows_error() -> None:
    params = SamplingParams(temperature=0, allowed_token_ids=(49,), min_tokens=2)
    sampled = Sampler().sample(
        torch.zeros(2, VOCAB_SIZE), [row(params), row(SamplingParams(seed=1))]
    )
    assert sampled.token_ids[0] == NO_TOKEN_ID
    assert list(sampled.errors) == [0]


@pytest.mark.parametrize(
    ("words", "output", "expected"),
    [
        ([(5,)], (), [5]),
        ([(4, 5)], (), []),
        ([(4, 5)], (4,), [5]),
        ([(4, 5)], (4, 5), []),
        ([(4, 4, 5)], (9, 4, 4), [5]),
        ([(4, 4, 5)], (4,), []),
        ([(4, 5), (4, 6), (3,)], (1, 4), [5, 6, 3]),
    ],
)
def test_what_would_complete_a_word(
    words: list[tuple[int, ...]], output: tuple[int, ...], expected: list[int]
) -> None:
    assert completing_ids(words, list(output)) == expected
    params = SamplingParams(temperature=0, bad_word_ids=tuple(words))
    for forbidden in expected:
        logits = torch.zeros(1, VOCAB_SIZE)
        logits[0, forbidden] = 9.0
        assert Sampler().sample(logits, [row(params, output)]).token_ids[0] not in expected


def test_any_choice_is_allowed_and_reproducible() -> None:
    generator = np.random.default_rng(0)
    logits = torch.randn(64, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    allowed = [tuple(generator.choice(VOCAB_SIZE, 4, replace=False).tolist()) for _ in range(64)]
    rows = [
        row(SamplingParams(temperature=1.5, seed=index, top_p=0.9, allowed_token_ids=ids))
        for index, ids in enumerate(allowed)
    ]
    together = Sampler().sample(logits.clone(), rows).token_ids
    for index, token_id in enumerate(together):
        assert token_id in allowed[index]
        alone = Sampler().sample(logits[index : index + 1].clone(), rows[index : index + 1])
        assert alone.token_ids == [token_id]


def test_bad_words_wait_for_the_token_before() -> None:
    from types import SimpleNamespace

    def ahead(params: SamplingParams) -> bool:
        request = SimpleNamespace(
            params=params, num_pending_tokens=1, num_output_tokens=3, num_tokens=9
        )
        return can_run_ahead(request, 100)  # type: ignore[arg-type]

    assert ahead(SamplingParams(max_tokens=9))
    assert not ahead(SamplingParams(max_tokens=9, bad_word_ids=((4, 5),)))
