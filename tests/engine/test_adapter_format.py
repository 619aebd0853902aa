"""Formatting a directory: what the file says, for whom it is, and what is refused at the door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine import adapter_format
from branchline.engine.adapter_format import (
    FormatJob,
    check_formatted,
    format_adapter,
    formatted_path,
)
from branchline.lora.adapter import digest_adapter
from branchline.lora.errors import AdapterError
from branchline.lora.formatted import read_header


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def adapter(model, tmp_path) -> Path:
    return make_adapter(model, tmp_path / "adapter", 20, target_modules=["q_proj", "down_proj"])


def job(model: Path, adapter: Path, **fields: object) -> FormatJob:
    return FormatJob(str(model), "float32", str(adapter), str(adapter.parent / "out"), **fields)


def test_the_facts_are_those_of_the_file(model, adapter):
    facts = format_adapter(job(model, adapter))
    path = formatted_path(adapter.parent / "out", facts.digest)
    assert facts.digest == digest_adapter(adapter)
    assert (facts.rank, facts.modules) == (20, ("down_proj", "q_proj"))
    assert facts.file_bytes == path.stat().st_size
    assert facts.device_bytes == read_header(path).shapes.num_bytes
    assert (facts.vocab_size, facts.invocation_tokens, facts.is_dense) == (None, 0, False)
    assert check_formatted(path, str(model), "float32") == facts
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_for_another_dtype_or_base_is_not_taken(model, adapter, tmp_path):
    facts = format_adapter(job(model, adapter))
    path = formatted_path(adapter.parent / "out", facts.digest)
    with pytest.raises(AdapterError, match="for another base model, dtype or version"):
        check_formatted(path, str(model), "bfloat16")
    other = shutil.copytree(model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterError, match="for another base model, dtype or version"):
        check_formatted(path, str(other), "float32")


def test_pages_in_8_bits_are_for_who_wants_them(model, adapter):
    """Files of either kind are made again for an engine of the other."""
    plain = format_adapter(job(model, adapter))
    path = formatted_path(adapter.parent / "out", plain.digest)
    with pytest.raises(AdapterError, match="for another base model, dtype or version"):
        check_formatted(path, str(model), "float32", "fp8")
    facts = format_adapter(job(model, adapter, adapter_dtype="fp8"))
    assert facts.digest == plain.digest
    assert facts.device_bytes == read_header(path).shapes.num_bytes
    assert 0.25 < facts.device_bytes / plain.device_bytes < 0.28
    assert facts.file_bytes < 0.3 * plain.file_bytes
    assert check_formatted(path, str(model), "float32", "fp8") == facts
    with pytest.raises(AdapterError, match="for another base model, dtype or version"):
        check_formatted(path, str(model), "float32")


def test_an_adapter_that_changes_nothing_is_refused(model, adapter):
    """As PEFT would write the base's own embedding beside nothing: it would be an empty file."""
    fields = json.loads((adapter / "adapter_config.json").read_text())
    fields["target_modules"] = ["nothing_here"]
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    save_file(
        {"base_model.model.model.embed_tokens.weight": embedding},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(AdapterError, match="changes nothing of the base"):
        format_adapter(job(model, adapter))
    assert not (adapter.parent / "out").exists()


def test_pages_beyond_the_memory_for_adapters_are_refused_before_they_are_made(
    model, adapter, monkeypatch
):
    limit = format_adapter(job(model, adapter)).device_bytes
    format_adapter(job(model, adapter, max_device_bytes=limit))
    monkeypatch.setattr(torch, "zeros", lambda *shape: pytest.fail("memory was taken"))
    with pytest.raises(AdapterError, match=r"r: its pages of 16 ranks hold \d+ numbers, at most"):
        format_adapter(job(model, adapter, max_device_bytes=limit - 1))


def test_files_that_change_while_they_are_read_are_refused(model, adapter, monkeypatch):
    digest = digest_adapter(adapter)

    def change_then_digest(path: str) -> str:
        (adapter / "adapter_config.json").write_text(
            (adapter / "adapter_config.json").read_text() + " "
        )
        return digest

    monkeypatch.setattr("branchline.lora.adapter.digest_adapter", change_then_digest)
    with pytest.raises(AdapterError, match="changed while they were read"):
        format_adapter(job(model, adapter))
    assert not formatted_path(adapter.parent / "out", digest).exists()


@pytest.mark.parametrize("part", ["shape", "data_offsets", "alone"])
def test_a_header_that_lies_is_no_formatted_adapter(part, model, adapter):
    facts = format_adapter(job(model, adapter))
    path = formatted_path(adapter.parent / "out", facts.digest)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    if part == "shape":
        header["qkv.a"]["shape"][1] += 1
    elif part == "data_offsets":
        header["qkv.a"]["data_offsets"][0] -= 4
    else:
        header["other.a"] = header.pop("qkv.a")
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(AdapterError, match="is no formatted adapter"):
        check_formatted(path, str(model), "float32")


def test_the_module_comes_up_without_torch_or_msgspec():
    source = Path(adapter_format.__file__).read_text()
    top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in top if "torch" in line or "msgspec" in line]
