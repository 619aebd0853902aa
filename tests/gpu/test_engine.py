"""Whole tiny models through the kernels: greedy tokens are those of transformers and PEFT."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_kinds import KINDS
from engine_run import check_generations, generate_all
from oracle import Reference
from rounded_reference import rounded_adapter
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.kernels import ops

LAYERS: dict[str, dict[str, Any]] = {
    "llama31": {"num_hidden_layers": 2},
    "qwen3": {"num_hidden_layers": 2},
    "gemma2": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
MAX_TOKENS = 3


@dataclass(frozen=True)
class Served:
    model: Path
    adapters: dict[str, Path]
    reference: Reference


@pytest.fixture(scope="module", params=LAYERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    directory = tmp_path_factory.mktemp(request.param)
    model = make_tiny_model(directory / "model", request.param, **LAYERS[request.param])
    adapters = {
        "rank 8": make_adapter(model, directory / "r8", 8),
        "rank 20": make_adapter(model, directory / "r20", 20, target_modules=["q_proj", "up_proj"]),
        "dora": KINDS["dora"].make(model, directory / "dora"),
        "norms": KINDS["saved norms"].make(model, directory / "norms"),
    }
    return Served(model, adapters, Reference(model, adapters))


def start(served: Served, device: torch.device, **options: Any) -> EngineLoop:
    sources = tuple(AdapterSource(digest=n, path=str(p)) for n, p in served.adapters.items())
    options = {"dtype": "float32", "kv_cache_gb": 0.005, "block_size": 4, **options}
    config = EngineConfig(
        model=str(served.model),
        adapters=sources,
        device="cuda" if device.type == "cuda" else "cpu",
        num_threads=1,
        max_model_len=64,
        max_num_seqs=8,
        **options,
    )
    return build_engine(config)


def requests(served: Served) -> list[GenerationRequest]:
    """Of the base and of each adapter, some of them longer than Gemma's window."""
    numbers = random.Random(3)
    return [
        GenerationRequest(
            request_id=f"r{number}",
            prompt_token_ids=[numbers.randrange(256) for _ in range(length)],
            params=SamplingParams(
                temperature=0, seed=number, max_tokens=MAX_TOKENS, ignore_eos=True
            ),
            adapter=adapter,
        )
        for number, (adapter, length) in enumerate(
            zip([None, *served.adapters, None, "rank 8"], (3, 13, 1, 9, 2, 10, 4), strict=True)
        )
    ]


def test_greedy_tokens(served: Served, device: torch.device) -> None:
    """In batches of base, LoRA and DoRA rows; prompts are cut, and share steps with decodes."""
    assert ops.uses_kernels(torch.empty(0, device=device))
    generations = requests(served)
    tokens = generate_all(start(served, device, max_num_batched_tokens=24), generations)
    check_generations(served.reference, generations, tokens)
    assert all(len(answer) == MAX_TOKENS for answer in tokens.values())


@pytest.mark.parametrize("served", ["llama31"], indirect=True)
def test_keys_and_values_in_8_bits(served: Served, device: torch.device) -> None:
    """Every token is the reference's best or nearly so: what is lost is precision alone."""
    generations = requests(served)[:4]
    tokens = generate_all(start(served, device, kv_cache_dtype="fp8"), generations)
    check_generations(served.reference, generations, tokens, margin=0.1, max_near_tie_share=0.5)


@pytest.mark.parametrize("served", ["llama31"], indirect=True)
def test_adapters_in_8_bits(served: Served, device: torch.device, tmp_path: Path) -> None:
    plain = {name: served.adapters[name] for name in ("rank 8", "rank 20")}
    loop = start(replace(served, adapters=plain), device, adapter_dtype="fp8")
    generations = [r for r in requests(served) if r.adapter is None or r.adapter in plain]
    rounded = {name: rounded_adapter(path, tmp_path / name) for name, path in plain.items()}
    reference = Reference(served.model, rounded)
    check_generations(reference, generations, generate_all(loop, generations))
