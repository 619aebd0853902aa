"""Engines whose adapters are in 8 bits, against transformers + peft with rounded adapters."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from adapter_batch import Prompted, run, start_engine
from engine_run import check_generations, generate_all
from oracle import Reference
from paged_run import odd_chunks
from rounded_reference import rounded_adapter
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.types import GenerationRequest, SamplingParams

TOLERANCE = 1e-4
NAMES = ("r4", "r20", "some")


@dataclass(frozen=True)
class Tiny:
    """A model, its adapters, and a reference that has them rounded."""

    model: Path
    adapters: dict[str, Path]
    reference: Reference


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("fp8")
    model = make_tiny_model(root / "model", "llama31")
    adapters = {
        "r4": make_adapter(model, root / "r4", 4),
        "r20": make_adapter(model, root / "r20", 20, seed=1),
        "some": make_adapter(
            model, root / "some", 33, target_modules=["v_proj", "up_proj", "down_proj"], seed=2
        ),
    }
    rounded = {
        name: rounded_adapter(path, root / f"{name}-rounded") for name, path in adapters.items()
    }
    return Tiny(model, adapters, Reference(model, rounded))


def test_logits_are_those_of_rounded_adapters(tiny: Tiny, tmp_path: Path) -> None:
    """Beside base rows, which are to the bit those of a batch without adapters."""
    engine = start_engine(tiny.model, tiny.adapters, tmp_path, adapter_dtype="fp8")
    assert not engine.errors
    numbers = random.Random(1)
    tokens = [numbers.randrange(256) for _ in range(19)]
    names = [*NAMES, None, "r20", None]
    sequences = [Prompted([*tokens[i:], *tokens[:i]], 16, name) for i, name in enumerate(names)]
    logits = run(engine, sequences, odd_chunks)
    full = Reference(tiny.model, tiny.adapters)
    for sequence, ours in zip(sequences, logits, strict=True):
        exact = tiny.reference.next_logits(sequence.token_ids, sequence.adapter, 16)
        for position, row in ours.items():
            error = float((row - exact[position]).abs().max() / exact[position].abs().max())
            assert error < TOLERANCE
        if sequence.adapter is not None:
            far = exact - full.next_logits(sequence.token_ids, sequence.adapter, 16)
            assert far.abs().max() > 30 * TOLERANCE * exact.abs().max(), "rounding can be told"
    only_base = run(engine, [replace(sequence, adapter=None) for sequence in sequences], odd_chunks)
    for sequence, ours, alone in zip(sequences, logits, only_base, strict=True):
        if sequence.adapter is None:
            assert all(torch.equal(row, alone[position]) for position, row in ours.items())


def test_greedy_tokens_are_those_of_rounded_adapters(tiny: Tiny) -> None:
    config = EngineConfig(
        model=str(tiny.model),
        adapters=tuple(AdapterSource(digest=n, path=str(p)) for n, p in tiny.adapters.items()),
        adapter_dtype="fp8",
        dtype="float32",
        device="cpu",
        kv_cache_gb=0.02,
        adapter_memory_gb=0.05,
        num_threads=1,
        max_num_batched_tokens=48,
    )
    loop = build_engine(config)
    assert loop.info.adapter_dtype == "fp8"
    numbers = random.Random(3)
    generations = [
        GenerationRequest(
            request_id=f"r{i}",
            prompt_token_ids=[numbers.randrange(256) for _ in range(20 + i)],
            params=SamplingParams(temperature=0, seed=i, max_tokens=12, ignore_eos=True),
            adapter=[None, *NAMES][i % 4],
        )
        for i in range(8)
    ]
    tokens = generate_all(loop, generations)
    check_generations(tiny.reference, generations, tokens)
    pool = loop.adapters.bank.pools["qkv"]
    assert (pool.a.dtype, pool.b.dtype) == (torch.float8_e4m3fn, torch.float8_e4m3fn)
