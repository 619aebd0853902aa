"""KV blocks go to the host and come back, exactly, in order, and never raise on the way."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.engine.kv_copier import KvCopier

DEADLINE = 30.0
KINDS = ["direct", "staged", pytest.param("cuda", marks=pytest.mark.gpu)]


def make_pool(num_blocks=9, num_layers=3, block_size=5, dtype=torch.float32, device="cpu"):
    shape = (num_layers, 2, num_blocks, block_size, 3, 7)
    generator = torch.Generator().manual_seed(num_blocks)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def make_copier(pool, num_host_blocks, kind="direct"):
    """``staged``: a GPU's way, with room for two blocks, on a CPU."""
    copier = KvCopier(pool, num_host_blocks)
    if kind != "direct":
        copier._staging = torch.empty_like(copier._host[:2], device=pool.device)
    return copier


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def finish(transfer):
    assert transfer.wait(DEADLINE)
    assert transfer.done()
    assert transfer.error is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_come_back_to_other_places_as_they_were(kind, dtype):
    pool = make_pool(dtype=dtype, device="cuda" if kind == "cuda" else "cpu")
    before = pool.clone()
    copier = make_copier(pool, 6, kind)
    out = copier.copy_out([3, 8, 1, 2, 5], [0, 1, 5, 3, 4])
    finish(out)
    assert out.num_blocks == 5
    assert torch.equal(pool, before), "copying out writes nothing"
    finish(copier.copy_in([5, 0, 3, 4, 1], [2, 4, 6, 3, 7]))
    expected = before.clone()
    expected[:, :, [2, 4, 6, 3, 7]] = before[:, :, [1, 3, 2, 5, 8]]
    assert torch.equal(pool, expected)
    copier.close()


def test_a_host_block_is_laid_out_as_promised(kind):
    pool = make_pool(device="cuda" if kind == "cuda" else "cpu")
    copier = make_copier(pool, 3, kind)
    finish(copier.copy_out([7], [2]))
    assert copier._host.shape == (3, 3, 2, 5, 3, 7)
    assert torch.equal(copier._host[2], pool[:, :, 7].cpu())
    assert copier._host.is_pinned() == (kind == "cuda")
    copier.close()


def test_transfers_run_in_the_order_they_were_asked_for(kind):
    pool = make_pool(device="cuda" if kind == "cuda" else "cpu")
    before = pool.clone()
    copier = make_copier(pool, 1, kind)
    transfers = []
    for block in range(1, 9):  # all through one host block, so that any other order is seen
        transfers.append(copier.copy_out([block], [0]))
        transfers.append(copier.copy_in([0], [block - 1]))
    for transfer in transfers:
        finish(transfer)
    assert torch.equal(pool[:, :, :8], before[:, :, 1:])
    copier.close()


def test_the_caller_may_change_its_lists(kind):
    pool = make_pool(device="cuda" if kind == "cuda" else "cpu")
    copier = make_copier(pool, 2, kind)
    release = hold(copier)
    block_ids, host_ids = [4], [1]
    transfer = copier.copy_out(block_ids, host_ids)
    block_ids[0], host_ids[0] = 5, 0
    release.set()
    finish(transfer)
    assert torch.equal(copier._host[1], pool[:, :, 4].cpu())
    copier.close()


def hold(copier):
    """Keep the copier busy until the event that is returned is set."""
    release = threading.Event()
    copier._thread.submit(lambda: 0 if release.wait(DEADLINE) else 1)
    return release


def test_nothing_is_done_before_it_is_done():
    copier = make_copier(make_pool(), 2)
    release = hold(copier)
    transfer = copier.copy_out([1, 2], [0, 1])
    assert not transfer.done()
    assert transfer.error is None
    assert not transfer.wait(0)
    assert copier.bytes_per_second is None
    release.set()
    finish(transfer)
    assert copier.bytes_per_second > 0
    copier.close()


def test_no_blocks_are_a_transfer_too(kind):
    copier = make_copier(make_pool(device="cuda" if kind == "cuda" else "cpu"), 2, kind)
    transfer = copier.copy_in([], [])
    finish(transfer)
    assert transfer.num_blocks == 0
    assert copier.bytes_per_second is None
    copier.close()


@pytest.mark.parametrize(
    ("block_ids", "host_ids", "error"),
    [
        ([9], [0], "IndexError: device blocks are 0 to 8, not 9 or 9"),
        ([-1], [0], "IndexError: device blocks are 0 to 8"),
        ([1, 2], [0, 4], "IndexError: host blocks are 0 to 3, not 0 or 4"),
        ([1], [-1], "IndexError: host blocks are 0 to 3"),
        ([1, 2], [0], "ValueError: 2 device blocks for 1 host blocks"),
    ],
)
def test_a_transfer_that_fails_says_so_and_writes_nothing(kind, block_ids, host_ids, error):
    pool = make_pool(device="cuda" if kind == "cuda" else "cpu")
    before = pool.clone()
    copier = make_copier(pool, 4, kind)
    copier._host.zero_()
    failed = [copier.copy_out(block_ids, host_ids), copier.copy_in(host_ids, block_ids)]
    for transfer in failed:
        assert transfer.wait(DEADLINE)
        assert transfer.done()
        assert transfer.error is not None
        assert transfer.error.startswith(error)
    assert not copier._host.any()
    assert torch.equal(pool, before)
    finish(copier.copy_out([1], [0]))
    copier.close()


def test_close_ends_every_transfer():
    copier = make_copier(make_pool(), 4)
    release = hold(copier)
    queued = [copier.copy_out([1], [0]), copier.copy_in([0], [2])]
    closing = threading.Thread(target=copier.close)
    closing.start()
    for transfer in queued:
        assert transfer.wait(DEADLINE)
        assert transfer.done()
        assert transfer.error == "the copier was closed"
    release.set()
    closing.join(DEADLINE)
    late = copier.copy_out([1], [0])
    assert late.done()
    assert late.error is not None
    copier.close()


pairs = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), unique_by=lambda p: p[1])


@settings(max_examples=40)
@given(pairs=pairs, back=st.permutations(range(9)), staged=st.booleans(), odd=st.integers(1, 3))
def test_any_blocks_any_order(pairs, back, staged, odd):
    pool = make_pool(num_layers=odd, block_size=2 * odd - 1, dtype=torch.bfloat16)
    before = pool.clone()
    copier = make_copier(pool, 6, "staged" if staged else "direct")
    block_ids, host_ids = [b for b, _ in pairs], [h for _, h in pairs]
    targets = list(back)[: len(pairs)]
    copier.copy_out(block_ids, host_ids)
    finish(copier.copy_in(host_ids, targets))
    expected = before.clone()
    expected[:, :, targets] = before[:, :, block_ids]
    assert torch.equal(pool, expected)
    copier.close()
