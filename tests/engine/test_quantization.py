"""Models whose linears are in 8 bits: exactly rounded, near the full ones, adapters on top."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from adapter_kinds import KINDS
from engine_run import check_generations, generate_all
from oracle import Reference
from paged_run import all_at_once, first_half_then_one_by_one, paged_logits, random_prompts
from rounded_reference import round_linears
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig, Quantization
from branchline.engine.errors import EngineStartError
from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.engine.progress import Progress, tell_nobody
from branchline.engine.quantization import require_float8, require_multiples
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.engine.weights import load_decoder
from branchline.kernels import ops

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
TRAINED = Path(__file__).parents[2] / "examples" / "skill" / "model"
LENGTHS = (40, 35)
MARGIN = 0.05
"""Two float32 sums in other orders can fall on two sides of a rounding to 8 bits, now and then."""


def load(directory: Path, quantization: Quantization | None = "fp8") -> Decoder:
    config = ModelConfig.from_directory(directory)
    return load_decoder(directory, config, torch.float32, "cpu", quantization=quantization)


@pytest.mark.parametrize("family", ["llama31", "qwen2", "gemma2", "phi3"])
def test_logits_are_those_of_rounded_linears(family: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, family, tokenizer=False)
    prompts = random_prompts(LENGTHS)
    full, exact = Reference(tmp_path), Reference(tmp_path)
    round_linears(exact)
    expected = torch.cat([exact.next_logits(prompt) for prompt in prompts])
    far = torch.cat([full.next_logits(prompt) for prompt in prompts]) - expected
    assert far.norm() > 0.05 * expected.norm(), "rounding can be told from none"
    for schedule in (all_at_once, first_half_then_one_by_one):
        logits = torch.cat(paged_logits(load(tmp_path), prompts, schedule(LENGTHS)))
        off = (logits - expected).norm(dim=1) / expected.norm(dim=1)
        assert off.median() < 1e-5
        assert off.mean() < 5e-3


def test_a_trained_model_is_off_by_a_tenth_at_most() -> None:
    """The logits of each position, their mean taken off; 7 % on average, and 12 % at most."""
    prompts = random_prompts(LENGTHS)
    full, near = (
        torch.cat(paged_logits(load(TRAINED, kind), prompts, all_at_once(LENGTHS)))
        for kind in (None, "fp8")
    )
    full, near = full - full.mean(1, keepdim=True), near - near.mean(1, keepdim=True)
    off = (near - full).norm(dim=1) / full.norm(dim=1)
    assert off.mean() < 0.1
    assert off.max() < 0.2
    assert (near.argmax(1) == full.argmax(1)).float().mean() > 0.85


def test_only_the_layers_linears_are_in_8_bits(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "qwen2", tokenizer=False)
    weights = load(tmp_path)._weights
    for layer in weights.layers:
        for weight in (layer.qkv, layer.o, layer.gate_up, layer.down):
            assert isinstance(weight, ops.Fp8Weight)
        assert isinstance(layer.qkv_bias, torch.Tensor)
        assert layer.attention_norm.dtype == torch.float32
    assert weights.embedding.dtype == torch.float32
    assert isinstance(weights.lm_head, torch.Tensor)


def test_generation_with_adapters_on_top(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", "llama31")
    adapters = {
        "r8": make_adapter(model, tmp_path / "r8", 8),
        "r24": make_adapter(model, tmp_path / "r24", 24),
        "dora": KINDS["dora"].make(model, tmp_path / "dora"),
    }
    loop = build_engine(
        EngineConfig(
            model=str(model),
            adapters=tuple(AdapterSource(digest=n, path=str(p)) for n, p in adapters.items()),
            dtype="float32",
            device="cpu",
            quantization="fp8",
            kv_cache_gb=0.02,
            adapter_memory_gb=0.05,
            num_threads=1,
        )
    )
    numbers = random.Random(3)
    names = [None, *adapters]
    generations = [
        GenerationRequest(
            request_id=f"r{i}",
            prompt_token_ids=[numbers.randrange(256) for _ in range(20 + i)],
            params=SamplingParams(temperature=0, seed=i, max_tokens=12, ignore_eos=True),
            adapter=names[i % len(names)],
        )
        for i in range(8)
    ]
    tokens = generate_all(loop, generations)
    reference = Reference(model, adapters)
    round_linears(reference)
    check_generations(reference, generations, tokens, margin=MARGIN, max_near_tie_share=0.25)


def test_the_start_says_how_far_it_is_and_what_there_is_room_for(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama")
    told: list[Progress] = []
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        quantization="fp8",
        max_num_seqs=4,
        max_loras=3,
        max_model_len=64,
        num_threads=1,
    )
    build_engine(config, told.append)
    assert told[0].text == f"loading {tmp_path} as float32 on cpu"
    weights = [progress for progress in told if progress.total is not None]
    size = (tmp_path / "model.safetensors").stat().st_size
    assert weights[0].text == "loading weights"
    assert weights[-1].done == weights[-1].total
    assert 0.9 * size < (weights[-1].total or 0) <= size
    done = [progress.done or 0 for progress in weights]
    assert done == sorted(set(done)), "it grows"
    assert told[-1].text == "room for 256 tokens of KV and 3 adapters of rank 16"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"quantization": "fp8"}, r"quantization: fp8 needs compute capability 8\.9.*has 8\.0$"),
        ({"kv_cache_dtype": "fp8"}, r"kv_cache_dtype: fp8 needs compute capability 8\.9"),
        ({"adapter_dtype": "fp8"}, r"adapter_dtype: fp8 needs compute capability 8\.9"),
    ],
)
def test_a_gpu_without_float8_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], error: str
) -> None:
    config = EngineConfig(model="m", **options)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(EngineStartError, match=error):
        require_float8(config, GPU)
    require_float8(EngineConfig(model="m"), GPU)
    require_float8(config, CPU)
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        require_float8(config, GPU)


def test_sides_that_a_gpu_can_t_multiply_are_refused_by_name(tmp_path: Path) -> None:
    require_multiples({"a": (16, 4096), "b": (48, 32)})
    with pytest.raises(EngineStartError, match=r"quantization: .*multiples of 16.*b is \[40, 32\]"):
        require_multiples({"a": (16, 4096), "b": (40, 32)})
    make_tiny_model(tmp_path, "llama", tokenizer=False, intermediate_size=72)
    config = ModelConfig.from_directory(tmp_path)
    with pytest.raises(EngineStartError, match=r"layers\.0\.mlp\.down_proj\.weight is \[64, 72\]"):
        load_decoder(tmp_path, config, torch.float32, GPU, None, quantization="fp8")
    load_decoder(
        *(tmp_path, config, torch.float32, CPU), quantization="fp8", on_progress=tell_nobody
    )
