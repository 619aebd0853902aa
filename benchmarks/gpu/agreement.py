"""The whole engine's tokens: those of the host, whether it replays graphs or runs ahead."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.kernels.backend import interprets

from .checkpoints import shape_of, write_adapter, write_model
from .sections import Run


@dataclass(frozen=True, slots=True)
class Load:
    """Requests at once, and how many tokens they bring and get."""

    batch_size: int
    prompt_len: int
    output_len: int


def load() -> Load:
    """Less of it where an interpreter runs the kernels."""
    return Load(3, 9, 3) if interprets() else Load(15, 24, 16)


COMPILE_SECONDS = 20
"""What an engine's first steps on a GPU may take."""

MAX_BFLOAT16_SHARE = 0.35
"""In 8 bits of mantissa two logits of a random model often tie, and a padded batch decides."""

Tokens = list[list[int]]


def check_tokens(run: Run) -> None:
    """Mixed batches of a tiny model, base rows and four adapters."""
    shape = shape_of("tiny")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = write_model(shape, directory / "model", torch.float32)
        adapters = [
            write_adapter(shape, directory / f"adapter{i}", 4 + 12 * i, i + 1) for i in range(4)
        ]
        config = EngineConfig(
            model=str(model),
            adapters=tuple(
                AdapterSource(digest=str(i), path=str(path)) for i, path in enumerate(adapters)
            ),
            dtype="float32",
            device="cpu",
            max_model_len=load().prompt_len + load().output_len + 1,
            max_num_seqs=load().batch_size,
            max_loras=8,
            adapter_memory_gb=0.02,
            adapter_host_gb=0.02,
            adapter_dense_gb=0.0,
            kv_cache_gb=0.02,
        )
        batch = requests([None, "0", "1", "2", "3"], shape.vocab_size)
        _against_host(run, config, batch)
        if interprets():
            run.note("one dtype is enough for an interpreter")
        else:
            _against_each_other(run, config, batch)


def _against_host(run: Run, config: EngineConfig, batch: Sequence[GenerationRequest]) -> None:
    """Alone on the host is what must come out in any batch anywhere."""
    host = build_engine(config)
    alone = [answer(host, [request])[0] for request in batch]
    base = [answer(host, [replace(request, adapter=None)])[0] for request in batch]
    close(host)
    changed = sum(a != b for a, b in zip(alone, base, strict=True))
    assert changed == sum(request.adapter is not None for request in batch), "adapters matter"
    for name, changes in MODES.items():
        together = _try(run, f"{name}, float32", config, changes, batch)
        if together is not None:
            share = _share_of_others(together, alone)
            run.check(f"tokens: {name}, as alone on the host", share, 0.0, "float32")


def _against_each_other(run: Run, config: EngineConfig, batch: Sequence[GenerationRequest]) -> None:
    """In bfloat16 the host is no reference; eager steps one at a time are."""
    half = replace(config, dtype="bfloat16")
    eager = _try(run, "eager, bfloat16", half, MODES["eager"], batch)
    for name, changes in MODES.items():
        together = _try(run, f"{name}, bfloat16", half, changes, batch)
        if eager is None or together is None:
            continue
        share = _share_of_others(together, eager)
        run.check(f"tokens: {name}, as by eager steps", share, MAX_BFLOAT16_SHARE, "bfloat16")


MODES: dict[str, dict[str, bool]] = {
    "eager": {"enforce_eager": True, "async_scheduling": False},
    "graphs": {"enforce_eager": False, "async_scheduling": False},
    "graphs, running ahead": {"enforce_eager": False, "async_scheduling": True},
}


def _try(
    run: Run,
    name: str,
    config: EngineConfig,
    changes: dict[str, bool],
    batch: Sequence[GenerationRequest],
) -> Tokens | None:
    """None if it fails, which is recorded, or if time is short."""
    if not run.has_time(COMPILE_SECONDS if run.options.device == "cuda" else 0):
        run.note(f"out of time before tokens of {name}")
        return None
    try:
        engine = build_engine(
            replace(
                config,
                device=run.options.device,
                enforce_eager=changes["enforce_eager"],
                async_scheduling=changes["async_scheduling"],
            )
        )
        tokens = answer(engine, batch)
        close(engine)
    except Exception:
        run.failed(f"tokens: {name}")
        return None
    return tokens


def _share_of_others(actual: Tokens, expected: Tokens) -> float:
    return sum(a != b for a, b in zip(actual, expected, strict=True)) / len(expected)


def requests(adapters: Sequence[str | None], vocab_size: int) -> list[GenerationRequest]:
    """Greedy requests of random prompts, their adapters in turn."""
    generator = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=load().output_len, ignore_eos=True, seed=0)
    return [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=[generator.randrange(vocab_size) for _ in range(load().prompt_len)],
            params=params,
            adapter=adapters[index % len(adapters)],
        )
        for index in range(load().batch_size)
    ]


def answer(engine: EngineLoop, batch: Sequence[GenerationRequest]) -> Tokens:
    """Each request's tokens; raises for one that fails."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in batch}
    for request in batch:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            tokens[output.request_id] += output.token_ids
    engine.check()
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks, "every block is free again"
    return list(tokens.values())


def close(engine: EngineLoop) -> None:
    """End its threads."""
    engine.adapters.close()
