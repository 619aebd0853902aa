"""The formatted file: what is written is what is read, and nothing half-written is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from branchline.kernels import ops
from branchline.lora import formatted
from branchline.lora.errors import AdapterError
from branchline.lora.formatted import read_header, write_formatted
from branchline.lora.fp8_pages import to_pages
from branchline.lora.weights import AdapterWeights, DenseWeights
from branchline.tests.support.lora_reference import random_weights
from branchline.tests.support.residency_house import SHAPES


def sample(dtype: torch.dtype = torch.bfloat16, dense: bool = True) -> AdapterWeights:
    """Pages in two groups, and something of every kind that is dense."""
    plain = random_weights(SHAPES, {"qkv": 20, "down": 3}, torch.Generator().manual_seed(1))
    if not dense:
        return plain.as_dtype(dtype)
    tables = {
        "embed_token_ids": torch.tensor([3, 1]),
        "embed_tokens": torch.randn(2, 8),
        "head_scale": torch.randn(11),
    }
    vectors = torch.randn(SHAPES.vectors.size)
    parts = DenseWeights(vectors, frozenset({"qkv"}), frozenset({"mlp_norm"}), tables)
    return AdapterWeights(plain.groups, parts, 13).as_dtype(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_written(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = sample(dtype)
    write_formatted(tmp_path / "x", weights, (5, 6), {"base": "b"})
    header = read_header(tmp_path / "x")
    data = torch.empty(header.num_bytes + 256, dtype=torch.uint8)[256:]
    assert header.read_into(data) == header.num_bytes
    got = header.weights_in(data)
    assert got.groups.keys() == {"qkv", "down"}
    for name, group in weights.groups.items():
        assert torch.equal(got.groups[name].a, group.a)
        assert torch.equal(got.groups[name].b, group.b)
    assert got.dense is not None
    assert weights.dense is not None
    assert torch.equal(got.dense.vectors, weights.dense.vectors)
    assert (got.dense.affine_groups, got.dense.norms) == ({"qkv"}, {"mlp_norm"})
    for name, table in weights.dense.tables.items():
        assert got.dense.tables[name].dtype == table.dtype
        assert torch.equal(got.dense.tables[name], table)
    assert (got.vocab_size, header.invocation_tokens, header.about) == (13, (5, 6), {"base": "b"})
    assert header.shapes.num_bytes == weights.num_bytes
    assert header.shapes.num_pages == {"qkv": 2, "down": 1}


def test_pages_in_8_bits_and_their_scales(tmp_path: Path) -> None:
    """In the file they take as much as on the device, and lie where views of them can be had."""
    weights = to_pages(sample(torch.float32), SHAPES, torch.bfloat16, ops.FP8)
    write_formatted(tmp_path / "x", weights, None, {})
    header = read_header(tmp_path / "x")
    assert header.num_bytes == weights.num_bytes == header.shapes.num_bytes
    data = torch.empty(header.num_bytes, dtype=torch.uint8)
    header.read_into(data)
    for name, group in header.weights_in(data).groups.items():
        expected = weights.groups[name]
        for ours, theirs in ((group.a, expected.a), (group.b, expected.b)):
            assert ours.dtype == ops.FP8
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
        assert group.scales is not None
        assert torch.equal(group.scales, expected.scales)


def test_a_plain_adapter_has_nothing_dense(tmp_path: Path) -> None:
    write_formatted(tmp_path / "x", sample(dense=False), None, {})
    header = read_header(tmp_path / "x")
    assert header.shapes.dense is None
    assert (header.vocab_size, header.invocation_tokens) == (None, None)


@pytest.mark.parametrize("cut", [3, 40, -1])
def test_a_file_that_was_cut_off_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_formatted(path, sample(), None, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AdapterError, match="path: "):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\x10" + b"\0" * 7 + b"[1, 2, 3, 4, 5]  "])
def test_what_is_no_formatted_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(AdapterError, match="no formatted adapter"):
        read_header(tmp_path / "x")


def test_a_file_that_is_gone_or_shorter_when_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_formatted(path, sample(), None, {})
    header = read_header(path)
    data = torch.empty(header.num_bytes, dtype=torch.uint8)
    os.truncate(path, header.data_start + 10)
    with pytest.raises(AdapterError, match=f"holds 10 bytes of {header.num_bytes}"):
        header.read_into(data)
    path.unlink()
    with pytest.raises(AdapterError, match="can't be read: No such file"):
        header.read_into(data)
    with pytest.raises(AdapterError, match="can't be read"):
        read_header(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_formatted(path, sample(dense=False), None, {})
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(formatted.os, call, fail)
    with pytest.raises(OSError, match="disk is full"):
        write_formatted(path, sample(), None, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
