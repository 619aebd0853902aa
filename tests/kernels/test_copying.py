"""Copies beside the steps: in order, measured, and never the caller's problem."""

from __future__ import annotations

import threading

import pytest
import torch

from branchline.kernels import ops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DEADLINE = 30.0


@pytest.fixture(params=DEVICES)
def thread(request):
    thread = ops.CopyThread(torch.device(request.param), "test-copies")
    yield thread
    thread.close()


def test_jobs_run_in_order_on_one_thread(thread):
    seen = []

    def job(number):
        seen.append((number, threading.current_thread().name))
        return number

    futures = [thread.submit(lambda n=n: job(n)) for n in range(20)]
    assert [future.result(DEADLINE) for future in futures] == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    names = {name for _, name in seen}
    assert len(names) == 1
    assert names != {threading.current_thread().name}


def test_the_rate_is_that_of_jobs_that_copied_something(thread):
    assert thread.submit(lambda: 0).result(DEADLINE) == 0
    assert thread.bytes_per_second is None
    thread.submit(lambda: 1 << 40).result(DEADLINE)
    fast = thread.bytes_per_second
    assert fast > 1 << 40, "a terabyte within a second"
    pause = threading.Event()
    thread.submit(lambda: (pause.wait(0.02), 1)[1]).result(DEADLINE)
    assert 0 < thread.bytes_per_second < fast


def test_a_job_that_fails_keeps_its_error_and_the_next_one_runs(thread):
    def fail():
        raise ValueError("no such page")

    failed, fine = thread.submit(fail), thread.submit(lambda: 3)
    assert fine.result(DEADLINE) == 3
    assert str(failed.exception(DEADLINE)) == "no such page"


def test_close_lets_the_running_job_finish_and_cancels_the_rest(thread):
    started, release = threading.Event(), threading.Event()

    def hold():
        started.set()
        assert release.wait(DEADLINE)
        return 1

    running, queued = thread.submit(hold), thread.submit(lambda: 2)
    assert started.wait(DEADLINE)
    closing = threading.Thread(target=thread.close)
    closing.start()
    while not queued.cancelled():
        assert closing.is_alive()
    release.set()
    closing.join(DEADLINE)
    assert running.result(DEADLINE) == 1
    late = thread.submit(lambda: 3)
    assert late.done()
    assert isinstance(late.exception(), RuntimeError)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_copy_on_one_core_is_exact_for_any_view(dtype):
    source = torch.randn(3, 5, 7).to(dtype)
    target = torch.zeros(3, 4, 9, dtype=dtype)
    ops.copy_on_one_core(target[:, 2, 1:8], source[:, 4])
    assert torch.equal(target[:, 2, 1:8], source[:, 4])
    target[:, 2, 1:8] = 0
    assert not target.any(), "it wrote somewhere else"
    ops.copy_on_one_core(target.permute(2, 0, 1)[:7], source[:, :4].permute(2, 0, 1))
    assert torch.equal(target[:, :, :7], source[:, :4])


def test_a_copy_on_one_core_keeps_every_bit():
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    target = torch.zeros(1 << 16, dtype=torch.bfloat16)
    ops.copy_on_one_core(target, bits.view(torch.bfloat16))
    assert torch.equal(target.view(torch.int16), bits)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 3), torch.float16), ((1, 3), torch.float32), ((3,), torch.float32)]
)
def test_a_copy_on_one_core_converts_and_broadcasts_nothing(shape, dtype):
    with pytest.raises(AssertionError):
        ops.copy_on_one_core(torch.zeros(2, 3), torch.ones(shape, dtype=dtype))
