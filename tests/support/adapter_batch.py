"""Many adapters of every kind in one batch, through all of the engine but schedule and sampler."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from branchline.engine.adapter_format import FormatJob, format_adapter, formatted_path
from branchline.engine.batch import build_batch
from branchline.engine.config import AdapterDtype
from branchline.engine.intake import NEVER
from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.engine.module_shapes import module_shapes
from branchline.engine.plan import ScheduledChunk, StepPlan
from branchline.engine.runner import ModelRunner
from branchline.engine.weights import load_decoder
from branchline.lora.activation import find_activation
from branchline.lora.bank import AdapterBank
from branchline.lora.formatted import read_header
from branchline.lora.fp8_pages import choose_page_dtype
from branchline.lora.weights import AdapterWeights

BLOCK_SIZE = 4
DENSE_BYTES = 32 << 20
Schedule = Callable[[Sequence[int]], Iterator[list[int]]]


@dataclass(frozen=True)
class Prompted:
    """One request: its tokens, the first ``num_prompt_tokens`` of them the prompt."""

    token_ids: list[int]
    num_prompt_tokens: int
    adapter: str | None = None


@dataclass
class Engine:
    """A decoder and a bank with adapters, by name; ``errors`` says why others are not there."""

    decoder: Decoder
    bank: AdapterBank
    slots: dict[str, int]
    invocations: dict[str, tuple[int, ...]]
    errors: dict[str, Exception] = field(default_factory=dict)


def start_engine(
    model: Path,
    adapters: Mapping[str, Path],
    scratch: Path,
    dtype: str = "float32",
    max_model_len: int | None = None,
    adapter_dtype: AdapterDtype = "auto",
) -> Engine:
    """Format the adapters and load them, over device memory that is full of NaN."""
    config = ModelConfig.from_directory(model)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    decoder = load_decoder(model, config, torch_dtype, "cpu", max_model_len)
    weights: dict[str, AdapterWeights] = {}
    errors: dict[str, Exception] = {}
    invocations: dict[str, tuple[int, ...]] = {}
    for name, path in adapters.items():
        try:
            job = FormatJob(str(model), dtype, str(path), str(scratch), adapter_dtype=adapter_dtype)
            facts = format_adapter(job)
        except Exception as error:
            errors[name] = error
            continue
        header = read_header(formatted_path(scratch, facts.digest))
        data = torch.empty(header.num_bytes, dtype=torch.uint8)
        header.read_into(data)
        weights[name] = header.weights_in(data)
        if header.invocation_tokens is not None:
            invocations[name] = header.invocation_tokens
    shapes = module_shapes(config)
    pages = {
        group: sum(adapter.num_pages.get(group, 0) for adapter in weights.values()) + 1
        for group in shapes.groups
    }
    num_slots = len(weights) + 1
    page_dtype = choose_page_dtype(adapter_dtype, torch_dtype)
    bank = AdapterBank(
        *(shapes, config.num_layers, pages, torch_dtype, "cpu", num_slots, DENSE_BYTES),
        page_dtype=page_dtype,
    )
    assert bank.dense is not None
    bank.dense._arena.fill_(255)
    for pool in bank.pools.values():
        for tensor in (pool.a, pool.b, pool.scales):
            if tensor is not None:
                tensor.fill_(torch.nan)
    slots = {name: slot for slot, name in enumerate(weights)}
    for name, slot in slots.items():
        bank.load(slot, weights[name])
    bank.check()
    return Engine(decoder, bank, slots, invocations, errors)


def run(
    engine: Engine, sequences: Sequence[Prompted], schedule: Schedule
) -> list[dict[int, Tensor]]:
    """Each sequence's logits at the ends of its chunks, by position."""
    lengths = [len(sequence.token_ids) for sequence in sequences]
    tables = _shuffled_block_tables(lengths)
    requests = [
        _request(engine, sequence, table) for sequence, table in zip(sequences, tables, strict=True)
    ]
    runner = ModelRunner(engine.decoder, 1 + sum(map(len, tables)), BLOCK_SIZE)
    runner.kv_pool.fill_(50.0)
    done = [0] * len(sequences)
    logits: list[dict[int, Tensor]] = [{} for _ in sequences]
    for step in schedule(lengths):
        # Requests with one token go first: the order the engine keeps.
        order = sorted((i for i, n in enumerate(step) if n), key=lambda i: step[i] > 1)
        plan = StepPlan(
            tuple(ScheduledChunk(requests[i], done[i], step[i], samples=True) for i in order)
        )
        with torch.inference_mode():
            batch = build_batch(plan, BLOCK_SIZE, engine.bank, engine.decoder.device)
            rows = runner.execute(batch)
        for i, row in zip(order, rows, strict=True):
            done[i] += step[i]
            logits[i][done[i] - 1] = row
    assert done == lengths
    return logits


def _request(engine: Engine, sequence: Prompted, block_ids: list[int]) -> Any:
    """What ``build_batch`` reads of a request."""
    adapter, start = sequence.adapter, 0
    if adapter in engine.invocations:
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        found = find_activation(prompt, engine.invocations[cast("str", adapter)])
        start = NEVER if found is None else found
    return SimpleNamespace(
        token_ids=sequence.token_ids,
        blocks=SimpleNamespace(block_ids=block_ids, num_shared_tokens=0),
        slot=None if adapter is None else SimpleNamespace(slot=engine.slots[adapter]),
        adapter_start=start,
    )


def _shuffled_block_tables(lengths: Sequence[int]) -> list[list[int]]:
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = list(range(1, 1 + sum(counts)))
    random.Random(3).shuffle(blocks)
    return [[blocks.pop() for _ in range(count)] for count in counts]
