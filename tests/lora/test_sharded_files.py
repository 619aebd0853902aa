"""Weights in shards with an index, and files whose headers lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_kinds import KINDS, split_into_shards
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model

from branchline.engine.models.config import ModelConfig
from branchline.engine.module_shapes import module_shapes
from branchline.lora.adapter import AdapterConfig, digest_adapter
from branchline.lora.errors import AdapterError
from branchline.lora.loader import changed_modules, load_adapter
from branchline.lora.shapes import ModuleShapes

INDEX = "adapter_model.safetensors.index.json"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama32", tokenizer=False)


@pytest.fixture(scope="module")
def shapes(model_dir: Path) -> ModuleShapes:
    return module_shapes(ModelConfig.from_directory(model_dir))


@pytest.fixture
def sharded(model_dir: Path, tmp_path: Path) -> Path:
    return KINDS["sharded"].make(model_dir, tmp_path / "sharded", seed=1)


def edit_index(directory: Path, edit: Callable[[dict[str, str]], object]) -> None:
    file = directory / INDEX
    index = json.loads(file.read_text())
    edit(index["weight_map"])
    file.write_text(json.dumps(index))


def shards_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("adapter_model-*.safetensors"))


def load(directory: Path, shapes: ModuleShapes) -> object:
    return load_adapter(directory, AdapterConfig.from_directory(directory), shapes)


def test_shards_hold_what_one_file_holds(
    sharded: Path, model_dir: Path, shapes: ModuleShapes, tmp_path: Path
) -> None:
    assert len(shards_of(sharded)) == 3
    whole = KINDS["rank 8"].make(model_dir, tmp_path / "whole", seed=1)
    ours, theirs = load(sharded, shapes), load(whole, shapes)
    for name, group in ours.groups.items():
        assert torch.equal(group.a, theirs.groups[name].a)
        assert torch.equal(group.b, theirs.groups[name].b)
    assert changed_modules(sharded) == changed_modules(whole)
    assert changed_modules(sharded) == tuple(
        sorted(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
    )


def test_the_digest_is_of_all_shards(sharded: Path) -> None:
    digests = {digest_adapter(sharded)}
    for shard in shards_of(sharded):
        tensors = load_file(shard)
        name = next(iter(tensors))
        tensors[name] = tensors[name] + 1
        save_file(tensors, shard)
        digests.add(digest_adapter(sharded))
    assert len(digests) == 4


def test_one_whole_file_is_what_counts(
    sharded: Path, model_dir: Path, shapes: ModuleShapes
) -> None:
    """PEFT reads that one, so an old index beside it is nothing."""
    KINDS["rank 3"].make(model_dir, sharded, seed=2)
    assert (sharded / INDEX).exists()
    assert load(sharded, shapes).groups["o"].b[0, 0, :3].any()
    assert not load(sharded, shapes).groups["o"].b[0, 0, 3:].any()


def twice(directory: Path) -> str:
    first, second = shards_of(directory)[:2]
    name = next(iter(load_file(first)))
    save_file(load_file(second) | {name: load_file(first)[name]}, second)
    return name


def unlisted(directory: Path) -> str:
    name = next(iter(load_file(shards_of(directory)[0])))
    edit_index(directory, lambda index: index.pop(name))
    return name


def only_listed(directory: Path) -> str:
    edit_index(
        directory, lambda index: index.update(extra="adapter_model-00001-of-00003.safetensors")
    )
    return "extra"


def missing_shard(directory: Path) -> str:
    shards_of(directory)[1].unlink()
    return "adapter_model-00002-of-00003.safetensors"


def truncated_shard(directory: Path) -> str:
    shard = shards_of(directory)[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    return shard.name


def shard_link(directory: Path) -> str:
    shard = shards_of(directory)[0]
    shard.rename(directory.parent / "outside")
    shard.symlink_to(directory.parent / "outside")
    return shard.name


def name_of_shard(name: str) -> Callable[[Path], str]:
    def rename(directory: Path) -> str:
        edit_index(directory, lambda index: index.update(dict.fromkeys(index, name)))
        return INDEX

    return rename


def index_text(text: str) -> Callable[[Path], str]:
    def write(directory: Path) -> str:
        (directory / INDEX).write_text(text)
        return INDEX

    return write


BAD_SHARDS: dict[str, tuple[Callable[[Path], str], str]] = {
    "a tensor in two shards": (twice, "in two shards"),
    "a tensor that the index leaves out": (unlisted, "not in the index"),
    "a tensor that only the index has": (only_listed, "where the index has it"),
    "a shard is missing": (missing_shard, "is missing"),
    "a shard is truncated": (truncated_shard, "not a whole safetensors file"),
    "a shard is a link out": (shard_link, "link that leads out"),
    "a path upwards": (name_of_shard("../../etc/x.safetensors"), "not the plain name"),
    "an absolute path": (name_of_shard("/etc/x.safetensors"), "not the plain name"),
    "a hidden name": (name_of_shard(".x.safetensors"), "not the plain name"),
    "a pickle": (name_of_shard("adapter_model.bin"), "not the plain name"),
    "no text": (index_text(""), "not JSON"),
    "deep text": (index_text("[" * 100_000), "not JSON"),
    "a list": (index_text("[]"), "weight_map"),
    "no map": (index_text("{}"), "weight_map"),
    "an empty map": (index_text('{"weight_map": {}}'), "weight_map"),
    "a map to numbers": (index_text('{"weight_map": {"a": 1}}'), "not the plain name"),
    "a key twice": (index_text('{"weight_map": {"a": "b", "a": "c"}}'), "twice"),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_refuses_bad_shards(kind: str, sharded: Path, shapes: ModuleShapes) -> None:
    spoil, said = BAD_SHARDS[kind]
    field = spoil(sharded)
    with pytest.raises(AdapterError, match=said) as caught:
        load(sharded, shapes)
    assert caught.value.field == field


def test_refuses_shards_that_are_too_large_together(sharded: Path) -> None:
    for shard in shards_of(sharded):
        with shard.open("r+b") as stream:
            stream.truncate(6 << 30)
    with pytest.raises(AdapterError, match="its shards have"):
        digest_adapter(sharded)


def test_refuses_too_many_shards(sharded: Path) -> None:
    def spread(index: dict[str, str]) -> None:
        index |= {f"t{i}": f"s{i}.safetensors" for i in range(300)}

    edit_index(sharded, spread)
    with pytest.raises(AdapterError, match="at most 256"):
        digest_adapter(sharded)


def test_many_shards_are_one_adapter(model_dir: Path, shapes: ModuleShapes, tmp_path: Path) -> None:
    adapter = KINDS["dora"].make(model_dir, tmp_path / "a", seed=1)
    split_into_shards(adapter, 40)
    base = load_file(model_dir / "model.safetensors")
    config = AdapterConfig.from_directory(adapter)
    weights = load_adapter(adapter, config, shapes, base.get)
    assert weights.dense is not None
    assert weights.dense.affine_groups == {*shapes.groups}


def write_header(directory: Path, header: str, data: bytes) -> None:
    text = header.encode()
    (directory / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + data
    )


def test_refuses_a_name_twice_in_a_header_even_for_the_same_bytes(
    model_dir: Path, shapes: ModuleShapes, tmp_path: Path
) -> None:
    """safetensors would take the last, whatever shape and dtype it gives them."""
    adapter = KINDS["rank 8"].make(model_dir, tmp_path / "a", seed=1)
    entries = [
        f'"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [0, 16]}}'
        for dtype, shape in (("F32", [4]), ("F16", [8]))
    ]
    write_header(adapter, "{" + ", ".join(entries) + "}", bytes(16))
    with pytest.raises(AdapterError, match=r"'a' is there twice") as caught:
        load(adapter, shapes)
    assert caught.value.field == "adapter_model.safetensors"


def test_refuses_too_many_tensors(model_dir: Path, shapes: ModuleShapes, tmp_path: Path) -> None:
    adapter = KINDS["rank 8"].make(model_dir, tmp_path / "a", seed=1)
    entries = [f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(70_000)]
    write_header(adapter, "{" + ",".join(entries) + "}", b"")
    with pytest.raises(AdapterError, match="at most 65536 are read"):
        load(adapter, shapes)
