"""A step never waits for the device: no shape and no branch needs a tensor's values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from branchline.kernels.ops import Selection
from branchline.lora.dense_mapping import TableRows
from branchline.lora.tables import embed, unembed
from branchline.tests.support.dense_parts import random_tables

EMBED = ("embed", "embed_tokens", "embed_a", "embed_scale")
HEAD = ("head", "head_tokens", "head_a", "head_scale", "head_shift")
VOCAB, HIDDEN = 40, 12


def routed(names: tuple[str, ...]) -> list[TableRows]:
    own = random_tables(HIDDEN, VOCAB, names, torch.Generator().manual_seed(0)).tables
    scattered = Selection(0, 6, torch.tensor([0, 3, 5]))
    return [TableRows(scattered, own), TableRows(Selection(6, 8), own)]


def run_embed(ids: Tensor, weight: Tensor) -> Tensor:
    return embed(ids, weight, routed(EMBED))


def run_unembed(ids: Tensor, weight: Tensor) -> Tensor:
    return unembed(weight[ids], weight, 30.0, routed(HEAD))


@pytest.mark.parametrize("step", [run_embed, run_unembed])
def test_tables(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    with FakeTensorMode():
        result = step(torch.zeros(8, dtype=torch.int64), torch.zeros(VOCAB, HIDDEN))
        assert result.shape[0] == 8


def test_it_would_be_found() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.zeros(3).max().item()
