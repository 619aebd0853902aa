"""Weights files that do not hold what the configuration and the base ask for."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from branchline.lora.adapter import AdapterConfig
from branchline.lora.errors import AdapterError
from branchline.lora.loader import load_adapter
from branchline.lora.shapes import ModuleShapes

SHAPES = ModuleShapes.for_decoder(
    num_layers=2, hidden_size=16, intermediate_size=24, num_heads=2, num_kv_heads=1, head_dim=8
)
Q = "base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight"
A0, B0, A1 = (Q.format(layer=layer, half=half) for layer, half in ((0, "A"), (0, "B"), (1, "A")))
Tensors = dict[str, torch.Tensor]


def write(directory: Path, tensors: Tensors, **fields: object) -> Path:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], **fields}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def good_tensors() -> Tensors:
    return {
        Q.format(layer=layer, half=half): torch.ones(4, 16) if half == "A" else torch.ones(16, 4)
        for layer in range(2)
        for half in "AB"
    }


def load(directory: Path) -> None:
    load_adapter(directory, AdapterConfig.from_directory(directory), SHAPES)


def test_the_good_one_loads(tmp_path: Path) -> None:
    load(write(tmp_path, good_tensors()))


def swap(name: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensor})


def drop(*names: str) -> Callable[[Tensors], None]:
    return lambda tensors: [tensors.pop(name) for name in names] and None


def poison(name: str, value: float) -> Callable[[Tensors], None]:
    def put(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][1, 2] = value

    return put


PREFIX = "base_model.model."
BAD_TENSORS: dict[str, tuple[Callable[[Tensors], None], str, str]] = {
    "rank": (swap(A0, torch.ones(5, 16)), A0, r"shape \[5, 16\]; .* ask for \[4, 16\]"),
    "other base, in": (swap(A0, torch.ones(4, 32)), A0, r"\[4, 32\]"),
    "other base, out": (swap(B0, torch.ones(32, 4)), B0, r"\[32, 4\]"),
    "transposed": (swap(A0, torch.ones(16, 4)), A0, "shape"),
    "one dimension": (swap(A0, torch.ones(64)), A0, "shape"),
    "empty": (swap(A0, torch.ones(0, 16)), A0, "shape"),
    "float64": (swap(A0, torch.ones(4, 16).double()), A0, "dtype F64; allowed: F32, F16, BF16"),
    "integers": (swap(A0, torch.ones(4, 16).int()), A0, "dtype I32"),
    "NaN": (poison(A0, torch.nan), A0, "NaN or infinity"),
    "infinity": (poison(B0, -torch.inf), B0, "NaN or infinity"),
    "half a pair": (drop(B0), B0, "missing"),
    "layer gone": (drop(A0, B0), A0, "missing, with 1 more"),
    "nothing": (lambda tensors: tensors.clear(), A0, "missing, with 3 more"),
    "one layer more": (
        swap(Q.format(layer=2, half="A"), torch.ones(4, 16)),
        Q.format(layer=2, half="A"),
        "it has 2 layers with",
    ),
    "unknown module": (
        swap(A0.replace("q_proj", "w_pack"), torch.ones(4, 16)),
        A0.replace("q_proj", "w_pack"),
        "has no model.layers.0.self_attn.w_pack; .* down_proj, gate_proj",
    ),
    "fused module of another base": (
        swap(A0.replace("q_proj", "qkv_proj"), torch.ones(4, 16)),
        A0.replace("q_proj", "qkv_proj"),
        "base model has no",
    ),
    "known module in the wrong place": (
        swap(A0.replace("self_attn", "mlp"), torch.ones(4, 16)),
        A0.replace("self_attn", "mlp"),
        "base model has no",
    ),
    "not targeted": (
        swap(A0.replace("q_proj", "k_proj"), torch.ones(4, 16)),
        A0.replace("q_proj", "k_proj"),
        "leave this module out",
    ),
    "vision tower": (
        swap(A0.replace("model.model.layers", "model.vision_tower.layers"), torch.ones(4, 16)),
        A0.replace("model.model.layers", "model.vision_tower.layers"),
        "base model has no",
    ),
    "not PEFT's name": (swap("q.lora_A.weight", torch.ones(4, 16)), "q.lora_A.weight", "PEFT"),
    "adapter name inside": (
        swap(A0.replace("lora_A", "lora_A.default"), torch.ones(4, 16)),
        A0.replace("lora_A", "lora_A.default"),
        "PEFT",
    ),
    "DoRA": (
        swap(A0.replace("lora_A.weight", "lora_magnitude_vector"), torch.ones(16)),
        "use_dora",
        "q_proj.lora_magnitude_vector",
    ),
    "lora bias": (swap(B0.replace("weight", "bias"), torch.ones(16)), "lora_bias", "bias"),
    "bias": (swap(f"{PREFIX}model.layers.0.self_attn.q_proj.bias", torch.ones(16)), "bias", "bias"),
    "embedding LoRA": (
        swap(f"{PREFIX}model.embed_tokens.lora_embedding_A", torch.ones(4, 9)),
        f"{PREFIX}model.embed_tokens.lora_embedding_A",
        "leave it out",
    ),
    "saved linear": (
        swap(A0.replace("lora_A.", ""), torch.ones(16, 16)),
        "modules_to_save",
        "wholly trained linear is not served: model.layers.0.self_attn.q_proj",
    ),
    "saved norm": (
        swap(f"{PREFIX}model.norm.weight", torch.ones(16)),
        f"{PREFIX}model.norm.weight",
        "base model has no model.norm",
    ),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_refuses_tensors_by_name(kind: str, tmp_path: Path) -> None:
    spoil, field, said = BAD_TENSORS[kind]
    tensors = good_tensors()
    spoil(tensors)
    with pytest.raises(AdapterError, match=said) as caught:
        load(write(tmp_path, tensors))
    assert caught.value.field == field


def test_refuses_targets_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="target_modules: matches no module") as caught:
        load(write(tmp_path, {}, target_modules=["c_attn"]))
    assert caught.value.field == "target_modules"


def test_refuses_a_scale_that_overflows(tmp_path: Path) -> None:
    tensors = good_tensors()
    tensors[B0] = torch.full((16, 4), 3e38)
    with pytest.raises(AdapterError, match="NaN or infinity"):
        load(write(tmp_path, tensors, lora_alpha=16))


def file_of(header: bytes, data: bytes = b"", claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + data


def entry(offsets: tuple[int, int], shape: tuple[int, ...] = (4, 16), dtype: str = "F32") -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header_of(**entries: object) -> bytes:
    return json.dumps(entries).encode()


BAD_BYTES = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "zero header": b"\0" * 8,
    "truncated header": file_of(header_of(a=entry((0, 256))))[:30],
    "header longer than the file": file_of(b"{}", claimed=5_000),
    "huge header": file_of(b"{}", claimed=1 << 62),
    "header length with the top bit": file_of(b"{}", claimed=(1 << 64) - 1),
    "header is no JSON": file_of(b"{nonsense"),
    "header is a list": file_of(b"[]"),
    "deep JSON": file_of(b"[" * 100_000),
    "truncated data": file_of(header_of(a=entry((0, 256))), b"\0" * 100),
    "data beyond": file_of(header_of(a=entry((0, 256))), b"\0" * 300),
    "offsets out of order": file_of(header_of(a=entry((256, 0))), b"\0" * 256),
    "hole": file_of(header_of(a=entry((64, 320))), b"\0" * 320),
    "overlap": file_of(header_of(a=entry((0, 256)), b=entry((128, 384))), b"\0" * 384),
    "shape larger than data": file_of(header_of(a=entry((0, 256), (4, 1 << 40))), b"\0" * 256),
    "shape overflows": file_of(header_of(a=entry((0, 256), (1 << 62, 1 << 62))), b"\0" * 256),
    "negative shape": file_of(header_of(a=entry((0, 256), (-4, -16))), b"\0" * 256),
    "unknown dtype": file_of(header_of(a=entry((0, 256), dtype="F99")), b"\0" * 256),
    "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("kind", BAD_BYTES)
def test_refuses_malformed_files(kind: str, tmp_path: Path) -> None:
    write(tmp_path, good_tensors())
    (tmp_path / "adapter_model.safetensors").write_bytes(BAD_BYTES[kind])
    with pytest.raises(AdapterError, match="safetensors file") as caught:
        load(tmp_path)
    assert caught.value.field == "adapter_model.safetensors"
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path, good_tensors())
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for length in range(0, len(whole), 41):
        file.write_bytes(whole[:length])
        with pytest.raises(AdapterError):
            load(tmp_path)


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    """The same name twice in the header: whichever wins, the other's bytes belong to nothing."""
    write(tmp_path, good_tensors())
    name, twin = json.dumps(A0), json.dumps(entry((256, 512)))
    header = f"{{{name}: {json.dumps(entry((0, 256)))}, {name}: {twin}}}".encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(file_of(header, b"\0" * 512))
    with pytest.raises(AdapterError):
        load(tmp_path)


def test_a_huge_claimed_shape_takes_no_memory(tmp_path: Path) -> None:
    """A sparse file whose header is consistent, but not what the base asks for."""
    size = 1 << 34
    write(tmp_path, good_tensors())
    file = tmp_path / "adapter_model.safetensors"
    header = header_of(**{A0: entry((0, size - 4096), ((size - 4096) // 64, 16))})
    file.write_bytes(file_of(header))
    with file.open("r+b") as stream:
        stream.truncate(8 + len(header) + size - 4096)
    tracemalloc.start()
    with pytest.raises(AdapterError, match=r"missing|shape"):
        load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    write(tmp_path, good_tensors())
    with (tmp_path / "adapter_model.safetensors").open("r+b") as stream:
        stream.truncate((16 << 30) + 1)
    with pytest.raises(AdapterError, match="at most"):
        load(tmp_path)


def test_f16_and_bf16_files_come_out_as_written(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        tensors = {name: tensor.to(dtype) * 0.3 for name, tensor in good_tensors().items()}
        directory = tmp_path / str(dtype)
        directory.mkdir()
        write(directory, tensors)
        weights = load_adapter(directory, AdapterConfig.from_directory(directory), SHAPES)
        a = weights.groups["qkv"].a
        assert a.dtype == torch.float32
        assert torch.equal(a[0, 0, :4], tensors[A0].float())
        assert load_file(directory / "adapter_model.safetensors")[A0].dtype == dtype
