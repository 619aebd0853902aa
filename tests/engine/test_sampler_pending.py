"""The sampler's two halves: what is launched, what is waited for, and how small things travel."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sampling_rows import sampling_rows

from branchline.engine.sampler import NO_TOKEN_ID, PendingSample, Sampler, SamplingRow
from branchline.engine.staging import HostCopy, pack, send, unpack
from branchline.engine.types import SamplingParams

VOCAB_SIZE = 300
PLAIN = SamplingParams(temperature=1.0, seed=1)
KINDS = [
    SamplingParams(temperature=0.0),
    replace(PLAIN, logprobs=3),
    replace(PLAIN, top_k=40, top_p=0.9, min_p=0.01),
    replace(PLAIN, repetition_penalty=1.3, frequency_penalty=0.5, min_tokens=8, logprobs=0),
    replace(PLAIN, temperature=0.0, top_k=3, top_p=0.5, logit_bias={7: 9.0}),
]


def make_logits(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(3)) * 2


def make_rows(num_rows: int) -> list[SamplingRow]:
    return sampling_rows(KINDS, num_rows, eos_token_id=299)


def test_the_halves_are_the_whole() -> None:
    logits, rows = make_logits(20), make_rows(20)
    whole = Sampler().sample(logits.clone(), rows)
    pending = Sampler().launch(logits.clone(), rows)
    assert isinstance(pending, PendingSample)
    assert pending.token_ids.dtype == torch.int64
    assert pending.token_ids.tolist() == whole.token_ids
    assert pending.result() == whole
    assert pending.result() == whole  # reading changes nothing


def test_a_result_outlives_its_logits_and_later_launches() -> None:
    """The next step may be launched, into the same logits, before this one is read."""
    logits, rows = make_logits(20), make_rows(20)
    expected = Sampler().sample(logits.clone(), rows)
    pending = Sampler().launch(logits, rows)
    token_ids = pending.token_ids.clone()
    logits.copy_(torch.zeros_like(logits))
    later = Sampler().launch(logits, rows)
    assert later.result() != expected
    assert pending.result() == expected
    assert torch.equal(pending.token_ids, token_ids)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_failed_row_feeds_token_0_to_the_next_step(bad: float, kind: int) -> None:
    logits, rows = make_logits(3), make_rows(3)
    logits[1] = bad
    rows[1] = replace(rows[1], params=KINDS[kind])
    pending = Sampler().launch(logits, rows)
    sampled = pending.result()
    assert sampled.token_ids[1] == NO_TOKEN_ID
    assert list(sampled.errors) == [1]
    assert pending.token_ids.tolist() == [sampled.token_ids[0], 0, sampled.token_ids[2]]


ARRAYS = [
    np.arange(3, dtype=np.int64),
    np.zeros((3, 0), np.float64),
    np.array([[1.5, -2.0, math.inf]], np.float32),
    np.array([7], np.uint8),
    np.arange(10, dtype=np.float64).reshape(2, 5).T.copy(),
    np.array([True, False]),
]


def test_packed_arrays_come_out_as_they_went_in() -> None:
    packed = pack(ARRAYS, pinned=False)
    assert packed.numel() % 16 == 0
    views = unpack(packed.clone(), ARRAYS)
    for array, view in zip(ARRAYS, views, strict=True):
        np.testing.assert_array_equal(view.numpy(), array)
        assert view.numpy().dtype == array.dtype


def test_what_is_sent_to_the_cpu_is_there() -> None:
    sent = send(ARRAYS, torch.device("cpu"))
    for array, tensor in zip(ARRAYS, sent, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert HostCopy(sent[0]).read() == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("arrays", [ARRAYS, [np.zeros((2, 0), np.int64)]])
def test_what_is_sent_to_a_gpu_arrives(arrays: list[np.ndarray]) -> None:
    for array, tensor in zip(arrays, send(arrays, torch.device("cuda")), strict=True):
        assert tensor.is_cuda
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


@pytest.mark.gpu
def test_a_launch_on_a_gpu_waits_for_nothing() -> None:
    logits, rows = make_logits(20).to("cuda"), make_rows(20)
    expected = Sampler().sample(logits.clone(), rows)  # compiles, and fills the caches of memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = Sampler().launch(logits, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.result() == expected
