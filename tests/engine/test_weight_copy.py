"""Weights through buffers by turns: every byte arrives, however slow the device is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from branchline.engine import weight_copy
from branchline.engine.errors import EngineStartError
from branchline.engine.weight_copy import StagedCopier, open_copier, pinned_buffers
from branchline.kernels import ops

POISON = 1e30


class SlowDevice:
    """Copies only when it is waited for, in order, as late as any device may."""

    def __init__(self) -> None:
        self.under_way: deque[SlowCopy] = deque()
        self.most_under_way = 0

    def launch(self, target: Tensor, staged: Tensor) -> SlowCopy:
        copy = SlowCopy(self, target, staged)
        self.under_way.append(copy)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        return copy


@dataclass(eq=False)
class SlowCopy:
    device: SlowDevice
    target: Tensor
    staged: Tensor
    done: bool = False

    def synchronize(self) -> None:
        while not self.done:
            first = self.device.under_way.popleft()
            first.target.copy_(first.staged)
            first.done = True


def buffers(num_bytes: int) -> list[Tensor]:
    return [torch.full((num_bytes,), 255, dtype=torch.uint8) for _ in range(2)]


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_bytes", [8, 100, 1 << 12])
def test_every_byte_arrives(stored: torch.dtype, wanted: torch.dtype, num_bytes: int) -> None:
    generator = torch.Generator().manual_seed(num_bytes)
    sources = [torch.randn(shape, generator=generator) for shape in ((7, 11), (1,), (64, 3))]
    sources = [source.to(stored) for source in sources]
    targets = [torch.full(source.shape, POISON, dtype=torch.float64) for source in sources]
    targets = [target.to(wanted) for target in targets]
    device, read = SlowDevice(), []
    copier = StagedCopier(buffers(num_bytes), device.launch, read.append)
    for target, source in zip(targets, sources, strict=True):
        copier.copy(target, source)
    copier.finish()
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source.to(wanted))
    assert sum(read) == sum(source.nbytes for source in sources)
    assert max(read) <= num_bytes


def test_one_piece_is_read_while_another_is_on_its_way() -> None:
    device = SlowDevice()
    copier = StagedCopier(buffers(16), device.launch, lambda count: None)
    copier.copy(torch.empty(64), torch.arange(64.0))
    assert device.most_under_way == 2
    assert len(device.under_way) == 2, "and never more than there are buffers"
    copier.finish()
    assert not device.under_way


def test_a_part_of_a_parameter_leaves_the_rest_alone() -> None:
    parameter = torch.full((6, 4), POISON)
    copier = StagedCopier(buffers(16), SlowDevice().launch, lambda count: None)
    copier.copy(parameter[2:4], torch.ones(2, 4))
    copier.finish()
    assert (parameter[2:4] == 1).all()
    assert (parameter[[0, 1, 4, 5]] == torch.tensor(POISON)).all()


def test_host_memory_is_filled_at_once() -> None:
    read: list[int] = []
    target = torch.empty(3, dtype=torch.bfloat16)
    with open_copier(torch.device("cpu"), read.append) as copier:
        copier.copy(target, torch.tensor([1.0, 2.0, 3.0]))
        assert target.tolist() == [1, 2, 3]
    assert read == [12]


def test_buffers_are_pinned_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: dict[int, int] = {}
    monkeypatch.setattr(ops, "pin_host", lambda t: pinned.update({t.data_ptr(): t.nbytes}))
    monkeypatch.setattr(ops, "unpin_host", lambda t: pinned.pop(t.data_ptr()))
    with pinned_buffers(2, 64) as held:
        assert pinned == {held[0].data_ptr(): 128}
        assert [buffer.nbytes for buffer in held] == [64, 64]
        assert held[1].data_ptr() == held[0].data_ptr() + 64
    assert pinned == {}


def test_memory_that_can_t_be_pinned_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def pin(tensor: Tensor) -> None:
        raise RuntimeError("128 bytes can't be pinned, CUDA error 2")

    monkeypatch.setattr(ops, "pin_host", pin)
    with pytest.raises(EngineStartError, match="loading weights: 128 bytes can't be pinned"):
        pinned_buffers(2, 64).__enter__()


def test_a_gpu_gets_the_staged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SlowDevice()
    monkeypatch.setattr(ops, "pin_host", lambda tensor: None)
    monkeypatch.setattr(ops, "unpin_host", lambda tensor: None)
    monkeypatch.setattr(weight_copy, "launch_on_gpu", device.launch)
    monkeypatch.setattr(weight_copy, "STAGING_BYTES", 16)
    target = torch.full((10,), POISON)
    with open_copier(torch.device("cuda"), lambda count: None) as copier:
        copier.copy(target, torch.arange(10.0))
    assert target.tolist() == list(range(10))
