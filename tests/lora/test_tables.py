"""embed and unembed: own embeddings and output layers, of any vocabulary, in one batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.ops import Selection
from branchline.lora.dense_mapping import TableRows
from branchline.lora.tables import NO_TOKEN, embed, unembed
from branchline.tests.support.dense_parts import plain_embedding, plain_logits, random_tables

VOCAB, HIDDEN = 40, 12
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
EMBED = ("embed", "embed_tokens", "embed_a", "embed_scale")
HEAD = ("head", "head_tokens", "head_a", "head_scale", "head_shift")


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [subset for n in range(1, len(names) + 1) for subset in itertools.combinations(names, n)]


def tables(
    names: tuple[str, ...], dtype: torch.dtype, vocab: int = VOCAB, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return dict(random_tables(HIDDEN, vocab, names, generator).as_dtype(dtype).tables)


def scattered(*rows: int) -> Selection:
    return Selection(rows[0], rows[-1] + 1, torch.tensor(rows))


def assert_near(got: Tensor, exact: Tensor) -> None:
    tolerance = TOLERANCE[got.dtype] * exact.abs().max()
    torch.testing.assert_close(got.double(), exact, atol=float(tolerance), rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("names", subsets(EMBED))
def test_own_embedding(names: tuple[str, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(VOCAB, HIDDEN).to(dtype)
    own = tables(names, dtype)
    # Every id once, and twice more; a part of the rows is the base's.
    ids = torch.cat((torch.randperm(VOCAB), torch.arange(VOCAB)))
    mine = scattered(*range(0, 2 * VOCAB, 2)), Selection(VOCAB, 2 * VOCAB)
    for rows in mine:
        got = embed(ids, weight, [TableRows(rows, own)])
        exact = plain_embedding(weight, own)
        assert_near(rows.of(got), exact[rows.of(ids)])
        others = [i for i in range(2 * VOCAB) if i not in rows.of(torch.arange(2 * VOCAB))]
        assert torch.equal(got[others], weight[ids[others]])
        assert got.dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("names", subsets(HEAD))
def test_own_output_layer(
    names: tuple[str, ...], soft_cap: float | None, dtype: torch.dtype
) -> None:
    weight = torch.randn(VOCAB, HIDDEN).to(dtype)
    hidden = torch.randn(9, HIDDEN).to(dtype)
    own = tables(names, dtype)
    base = unembed(hidden, weight, soft_cap)
    for rows in (scattered(0, 3, 8), Selection(2, 5)):
        got = unembed(hidden, weight, soft_cap, [TableRows(rows, own)])
        assert got.dtype == torch.float32
        exact = plain_logits(rows.of(hidden), weight, own, soft_cap)
        tolerance = TOLERANCE[dtype] * float(exact.abs().max())
        torch.testing.assert_close(rows.of(got).double(), exact, atol=tolerance, rtol=0)
        others = [i for i in range(9) if i not in rows.of(torch.arange(9))]
        assert torch.equal(got[others], base[others])


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_vocabularies_of_all_sizes_in_one_batch(soft_cap: float | None) -> None:
    weight, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(8, HIDDEN)
    more, fewer = tables(("head",), torch.float32, 43), tables(("head",), torch.float32, 37)
    most = tables(("head", "head_a", "head_tokens"), torch.float32, 50)
    same = tables(("head_shift",), torch.float32)
    routed = [
        TableRows(scattered(1, 6), more),
        TableRows(Selection(2, 3), fewer),
        TableRows(Selection(3, 5), most),
        TableRows(Selection(7, 8), same),
    ]
    got = unembed(hidden, weight, soft_cap, routed)
    assert got.shape == (8, 50)
    base = unembed(hidden, weight, soft_cap)
    assert torch.equal(got[[0, 5], :VOCAB], base[[0, 5]])
    widths = [40, 43, 37, 50, 50, 40, 43, 40]
    for row, width in enumerate(widths):
        assert got[row, :width].isfinite().all()
        assert (got[row, width:] == NO_TOKEN).all()
    for part in routed:
        exact = plain_logits(part.rows.of(hidden), weight, part.tables, soft_cap)
        assert_near(part.rows.of(got)[:, : exact.shape[1]], exact)


def test_fewer_tokens_than_the_base_do_not_narrow_the_others() -> None:
    weight, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(2, HIDDEN)
    fewer = tables(("head",), torch.float32, 37)
    got = unembed(hidden, weight, None, [TableRows(Selection(1, 2), fewer)])
    assert torch.equal(got[0], unembed(hidden, weight)[0])
    assert (got[1, 37:] == NO_TOKEN).all()


def test_added_tokens_are_looked_up_in_the_adapters_own_embedding() -> None:
    weight = torch.randn(VOCAB, HIDDEN)
    own = tables(("embed",), torch.float32, 45)
    ids = torch.tensor([3, 44, 39, 40, 3])
    got = embed(ids, weight, [TableRows(Selection(1, 4), own)])
    assert torch.equal(got[[0, 4]], weight[[3, 3]])
    assert torch.equal(got[1:4], own["embed"][[44, 39, 40]])


def test_without_tables_it_is_one_lookup_and_one_gemm() -> None:
    weight, hidden, ids = torch.randn(VOCAB, HIDDEN), torch.randn(3, HIDDEN), torch.tensor([1, 2])
    with torch.profiler.profile() as profile:
        assert torch.equal(embed(ids, weight), weight[1:3])
    assert sum(event.name == "aten::embedding" for event in profile.events()) == 1
    assert torch.equal(unembed(hidden, weight), ops.linear(hidden, weight))


def test_the_base_layer_may_be_packed() -> None:
    weight, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(3, HIDDEN)
    own = tables(("head_a",), torch.float32)
    routed = [TableRows(Selection(0, 2), own)]
    got = unembed(hidden, ops.pack_linear(weight), None, routed)
    torch.testing.assert_close(got, unembed(hidden, weight, None, routed))
