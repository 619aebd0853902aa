"""The whole engine on a device, in this process: the right tokens, and how fast they come."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, Device, Dtype, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams

from .checkpoints import TINY, Shape, write_adapter, write_model

RANK = 16


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """One kind of traffic: ``step_ms`` is the median step in which every request decodes."""

    traffic: str
    batch_size: int
    context: int
    step_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Load:
    """How many requests decode at once, and how long their prompts and answers are."""

    batch_size: int
    prompt_len: int
    output_len: int


def start(
    model: Path, adapters: Sequence[Path], device: Device, dtype: Dtype, load: Load
) -> EngineLoop:
    """An engine that can hold the whole load at once; digests are the adapters' indices."""
    length = load.prompt_len + load.output_len + 1
    return build_engine(
        EngineConfig(
            model=str(model),
            adapters=tuple(
                AdapterSource(digest=str(i), path=str(p)) for i, p in enumerate(adapters)
            ),
            dtype=dtype,
            device=device,
            max_model_len=length,
            max_num_seqs=load.batch_size,
        )
    )


def requests(
    vocab_size: int, load: Load, adapters: Sequence[str | None]
) -> list[GenerationRequest]:
    """Greedy requests of random prompts, their adapters in turn."""
    generator = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=load.output_len, ignore_eos=True, seed=0)
    return [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=[generator.randrange(vocab_size) for _ in range(load.prompt_len)],
            params=params,
            adapter=adapters[index % len(adapters)],
        )
        for index in range(load.batch_size)
    ]


def run(
    engine: EngineLoop, batch: Sequence[GenerationRequest]
) -> tuple[list[list[int]], list[float]]:
    """Each request's tokens, and the seconds of the steps in which all of them decoded."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in batch}
    seconds = []
    for request in batch:
        engine.add(request)
    while engine.has_work:
        all_decode = all(tokens.values())
        started = time.perf_counter()
        outputs = engine.step()
        elapsed = time.perf_counter() - started
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
            tokens[output.request_id] += output.token_ids
        if all_decode and len(outputs) == len(batch):
            seconds.append(elapsed)
    engine.check()
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks, "every block is free again"
    return list(tokens.values()), seconds


def agreement(device: Device, directory: Path) -> float:
    """The share of requests with the same float32 tokens in a mixed batch as alone on the host."""
    model = write_model(TINY, directory / "tiny", torch.float32)
    adapters = [write_adapter(TINY, directory / f"tiny{i}", 4 + 12 * i, i + 1) for i in range(4)]
    load = Load(batch_size=15, prompt_len=24, output_len=16)
    batch = requests(TINY.vocab_size, load, [None, "0", "1", "2", "3"])
    together, _ = run(start(model, adapters, device, "float32", load), batch)
    host = start(model, adapters, "cpu", "float32", load)
    alone = [run(host, [request])[0][0] for request in batch]
    base = [run(host, [replace(request, adapter=None)])[0][0] for request in batch]
    assert sum(a != b for a, b in zip(alone, base, strict=True)) == 12, "adapters change the tokens"
    return sum(a == b for a, b in zip(together, alone, strict=True)) / len(batch)


def decode_speed(
    shape: Shape, load: Load, device: Device, dtype: Dtype, directory: Path
) -> list[DecodeResult]:
    """Base traffic, one adapter for all, and an adapter for each request."""
    model = write_model(shape, directory / "base", getattr(torch, dtype))
    paths = [
        write_adapter(shape, directory / f"adapter{index}", RANK, index)
        for index in range(load.batch_size)
    ]
    names = [str(index) for index in range(load.batch_size)]
    without = start(model, [], device, dtype, load)
    results = [_measure("base, no adapters loaded", without, shape, load, [None])]
    del without
    if device == "cuda":
        torch.cuda.empty_cache()
    engine = start(model, paths, device, dtype, load)
    kinds: dict[str, Sequence[str | None]] = {
        f"base, {len(paths)} adapters loaded": [None],
        f"1 adapter, rank {RANK}": names[:1],
        f"{len(paths)} adapters, rank {RANK}": names,
    }
    for traffic, adapters in kinds.items():
        results.append(_measure(traffic, engine, shape, load, adapters))
    return results


def _measure(
    traffic: str, engine: EngineLoop, shape: Shape, load: Load, adapters: Sequence[str | None]
) -> DecodeResult:
    batch = requests(shape.vocab_size, load, adapters)
    run(engine, batch)
    _, seconds = run(engine, batch)
    step = median(seconds)
    context = load.prompt_len + load.output_len // 2
    return DecodeResult(traffic, load.batch_size, context, step * 1000, load.batch_size / step)
