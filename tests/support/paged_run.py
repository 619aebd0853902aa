"""Feeds a decoder in chosen chunks through a paged cache, and transformers beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.engine.weights import load_decoder
from branchline.kernels import ops

BLOCK_SIZE = 4
Chunks = Iterator[list[int]]


def load(
    directory: Path, dtype: torch.dtype = torch.float32, max_model_len: int | None = None
) -> Decoder:
    config = ModelConfig.from_directory(directory)
    return load_decoder(directory, config, dtype, "cpu", max_model_len)


def reference(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same checkpoint in transformers, with the attention that honours soft caps."""
    return AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=dtype
    ).eval()


def reference_logits(model: PreTrainedModel, prompts: Sequence[list[int]]) -> list[Tensor]:
    """Logits [length, vocab] of each prompt alone, in one plain forward."""
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0].float() for prompt in prompts]


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(256) for _ in range(length)] for length in lengths]


def all_at_once(lengths: Sequence[int]) -> Chunks:
    """One step that holds every prompt whole."""
    yield list(lengths)


def one_by_one(lengths: Sequence[int]) -> Chunks:
    """One token of every prompt a step, as in decode."""
    for position in range(max(lengths)):
        yield [int(position < length) for length in lengths]


def odd_chunks(lengths: Sequence[int]) -> Chunks:
    """Chunks of 1 to 11 tokens, of differing prompts, so that decodes and chunks mix."""
    source = random.Random(5)
    left = list(lengths)
    while any(left):
        step = [min(rest, source.choice((0, 1, 1, 3, 5, 11))) for rest in left]
        left = [rest - taken for rest, taken in zip(left, step, strict=True)]
        if any(step):
            yield step


def first_half_then_one_by_one(lengths: Sequence[int]) -> Chunks:
    """Prefill, then decode."""
    yield [length // 2 for length in lengths]
    yield from one_by_one([length - length // 2 for length in lengths])


SCHEDULES: tuple[Callable[[Sequence[int]], Chunks], ...] = (
    all_at_once,
    one_by_one,
    odd_chunks,
    first_half_then_one_by_one,
)


def paged_logits(decoder: Decoder, prompts: Sequence[list[int]], chunks: Chunks) -> list[Tensor]:
    """Logits [length, vocab] of each prompt, its blocks scattered over a pool of garbage."""
    tables = _shuffled_block_tables([len(prompt) for prompt in prompts])
    kv_caches = _poisoned_caches(decoder, 1 + sum(len(table) for table in tables))
    done = [0] * len(prompts)
    rows: list[list[Tensor]] = [[] for _ in prompts]
    for step in chunks:
        # Requests with one token go first: the order the engine keeps.
        order = sorted((i for i, n in enumerate(step) if n), key=lambda i: step[i] > 1)
        spans = {i: range(done[i], done[i] + step[i]) for i in order}
        hidden = _forward(decoder, prompts, tables, kv_caches, spans)
        logits = decoder.logits(hidden).split([step[i] for i in order])
        for index, part in zip(order, logits, strict=True):
            rows[index].append(part)
            done[index] += step[index]
    assert done == [len(prompt) for prompt in prompts]
    return [torch.cat(parts) for parts in rows]


@torch.inference_mode()
def _forward(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    tables: list[list[int]],
    kv_caches: list[ops.KvCache],
    spans: dict[int, range],
) -> Tensor:
    positions = [(i, p) for i, span in spans.items() for p in span]
    slots = [tables[i][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for i, p in positions]
    attention = ops.build_attention_metadata(
        [tables[i] for i in spans],
        [len(span) for span in spans.values()],
        [span.stop for span in spans.values()],
    )
    return decoder.forward(
        torch.tensor([prompts[i][p] for i, p in positions]),
        torch.tensor([p for _, p in positions]),
        kv_caches,
        torch.tensor(slots),
        attention,
        None,
    )


def _shuffled_block_tables(lengths: Sequence[int]) -> list[list[int]]:
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = list(range(1, 1 + sum(counts)))
    random.Random(3).shuffle(blocks)
    return [[blocks.pop() for _ in range(count)] for count in counts]


def _poisoned_caches(decoder: Decoder, num_blocks: int) -> list[ops.KvCache]:
    config = decoder.config
    shape = (num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    keys = [torch.full(shape, 50.0, dtype=decoder.dtype) for _ in config.layers]
    return [ops.KvCache(key, -key) for key in keys]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Each position's largest error, relative to its largest logit, is under ``tolerance``."""
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float32
        error = (ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)
        assert error.max() < tolerance, f"position {int(error.argmax())}: {float(error.max())}"


def rewrite_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply ``change`` to the checkpoint's config.json."""
    path = directory / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def to_old_layout(values: dict[str, Any]) -> None:
    """Write the facts as transformers 4 did: ``rope_theta``, ``rope_scaling``, ``torch_dtype``."""
    values["torch_dtype"] = values.pop("dtype")
    values.pop("layer_types", None)
    rope = values.pop("rope_parameters")
    if "full_attention" in rope:
        values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        values["sliding_window_pattern"] = 3
        rope = rope["full_attention"]
    values["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        values["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope.get("rope_type") == "longrope":
        rope["type"] = rope.pop("rope_type")
        rope.pop("original_max_position_embeddings")
    values["rope_scaling"] = rope if rope.get("rope_type") != "default" else None
