"""Checkpoints on disk into fused parameters: shards, tying, dtypes, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paged_run import (
    all_at_once,
    assert_close,
    load,
    paged_logits,
    random_prompts,
    reference,
    reference_logits,
)
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model
from torch import Tensor

from branchline.engine.models.config import UnsupportedModelError

LENGTHS = (40, 35)
LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def check(directory: Path) -> None:
    prompts = random_prompts(LENGTHS)
    expected = reference_logits(reference(directory), prompts)
    assert_close(paged_logits(load(directory), prompts, all_at_once(LENGTHS)), expected, 1e-4)


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("tied", [True, False])
def test_shards_tied_and_untied(family: str, tied: bool, tmp_path: Path) -> None:
    make_tiny_model(
        tmp_path, family, max_shard_size="100KB", tie_word_embeddings=tied, tokenizer=False
    )
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    check(tmp_path)


def test_tied_checkpoints_may_hold_only_the_head(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "smollm2", tokenizer=False)
    rewrite(tmp_path, lambda tensors: tensors.update({LM_HEAD: tensors.pop(EMBEDDING)}))
    check(tmp_path)


def test_tied_checkpoints_may_hold_both(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "smollm2", tokenizer=False)
    rewrite(tmp_path, lambda tensors: tensors.update({LM_HEAD: tensors[EMBEDDING].clone()}))
    check(tmp_path)


def test_a_differing_head_is_used_though_the_config_says_tied(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "smollm2", tokenizer=False)
    rewrite(tmp_path, lambda tensors: tensors.update({LM_HEAD: -tensors[EMBEDDING]}))
    check(tmp_path)


def test_stored_rope_buffers_are_passed_over(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", tokenizer=False)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.ones(8)}))
    check(tmp_path)


def test_each_tensor_is_converted_from_its_own_dtype(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", tokenizer=False)

    def mix(tensors: dict[str, Tensor]) -> None:
        for index, name in enumerate(sorted(tensors)):
            dtype = (torch.float16, torch.bfloat16, torch.float32, torch.float64)[index % 4]
            tensors[name] = tensors[name].to(dtype)

    rewrite(tmp_path, mix)
    check(tmp_path)
    assert load(tmp_path, torch.bfloat16).dtype == torch.bfloat16


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (
        lambda tensors: [tensors.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in range(4)],
        r"missing tensors: model\.layers\.0\.mlp\.up_proj\.weight, ",
    ),
    "many missing": (
        lambda tensors: [tensors.pop(name) for name in list(tensors)[:10]],
        "and 6 more",
    ),
    "unexpected": (
        lambda tensors: tensors.update({"model.layers.0.mlp.gate.weight": torch.ones(2)}),
        r"unexpected tensors: model\.layers\.0\.mlp\.gate\.weight$",
    ),
    "misshapen": (
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}),
        r"model\.norm\.weight has shape \[65\]; must be \[64\]",
    ),
    "quantized": (
        lambda tensors: tensors.update({LM_HEAD: tensors[LM_HEAD].to(torch.float8_e4m3fn)}),
        r"lm_head\.weight has dtype F8_E4M3; must be one of F32, BF16",
    ),
    "no head": (lambda tensors: tensors.pop(LM_HEAD), r"missing tensors: lm_head\.weight$"),
    "no embedding": (
        lambda tensors: tensors.pop(EMBEDDING),
        r"missing tensors: model\.embed_tokens\.weight$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_tensors_are_refused_by_name(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    make_tiny_model(tmp_path, "llama", tokenizer=False)
    rewrite(tmp_path, lambda tensors: (change(tensors), None)[1])
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wrong_config_takes_no_memory(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", tokenizer=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10**13}))
    with pytest.raises(UnsupportedModelError, match=r"embed_tokens\.weight has shape \[260, 64\]"):
        load(tmp_path)


@pytest.mark.parametrize(
    "file_name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "a.bin", 7]
)
def test_an_index_stays_inside_its_directory(file_name: object, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", max_shard_size="100KB", tokenizer=False)
    index = {"weight_map": {LM_HEAD: file_name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match="must be a plain"):
        load(tmp_path)


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", max_shard_size="100KB", tokenizer=False)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UnsupportedModelError, match=r"model-00002.*can't be read"):
        load(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", max_shard_size="100KB", tokenizer=False)
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(UnsupportedModelError, match="is in two files"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_files_that_are_no_safetensors(content: bytes, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", tokenizer=False)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: can't be read"):
        load(tmp_path)


def test_pickled_checkpoints_are_not_read(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama", tokenizer=False)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"has neither model\.safetensors nor"):
        load(tmp_path)


MEASURE = """
import sys, threading
from pathlib import Path
import torch
from branchline.engine.models.config import ModelConfig
from branchline.engine.weights import load_decoder

def load(path):
    return load_decoder(path, ModelConfig.from_directory(path), torch.float32, "cpu")

def own_memory():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def watch():
    while not done.wait(0.001):
        seen.append(own_memory())

load(sys.argv[1])
done, seen, before = threading.Event(), [], own_memory()
watcher = threading.Thread(target=watch)
watcher.start()
decoder = load(sys.argv[2])
done.set()
watcher.join()
print(max(seen, default=0) - before, own_memory() - before, len(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """Memory of our own (not the mapped file) never holds more than the parameters."""
    small, large = tmp_path / "small", tmp_path / "large"
    make_tiny_model(small, "llama", tokenizer=False)
    make_tiny_model(large, "llama", hidden_size=768, intermediate_size=2048, tokenizer=False)
    size = (large / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE, small, large], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, grown, samples = map(int, done.stdout.split())
    assert samples > 3
    assert grown > 0.9 * size > 90e6
    assert peak < 1.2 * size
