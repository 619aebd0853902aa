"""The head of a recorded conversation trace as prompts, and what caches would find in it.

A line of the trace says which 512-token blocks a prompt began with, by ids: equal ids, equal
content. Here each id stands for the same random tokens wherever it occurs, fewer of them so that
a small model on a CPU can take all of it; the last block of a prompt is as full as it was.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from .ttft import random_tokens

TRACE = Path(__file__).resolve().parents[1] / "traces" / "conversation-head.jsonl"
TRACED_BLOCK = 512
"""Tokens that one hash id stood for when the trace was taken."""


class TracedRequest(msgspec.Struct, frozen=True):
    """One line: milliseconds since the start, tokens in and out, and the ids of its blocks."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path, num_requests: int) -> list[TracedRequest]:
    """The first requests of a trace, in its order."""
    lines = path.read_bytes().splitlines()[:num_requests]
    return [msgspec.json.decode(line, type=TracedRequest) for line in lines]


def prompts_of(
    requests: Sequence[TracedRequest], tokens_per_hash: int, vocab_size: int
) -> list[list[int]]:
    """Block-true prompts: two share tokens exactly where their hash ids agree."""
    return [_prompt(request, tokens_per_hash, vocab_size) for request in requests]


def _prompt(request: TracedRequest, tokens_per_hash: int, vocab_size: int) -> list[int]:
    tokens: list[int] = []
    for hash_id in request.hash_ids:
        generator = random.Random(f"block {hash_id}")
        tokens += random_tokens(generator, tokens_per_hash, vocab_size)
    last = request.input_length - (len(request.hash_ids) - 1) * TRACED_BLOCK
    missing = TRACED_BLOCK - max(1, min(TRACED_BLOCK, last))
    return tokens[: len(tokens) - missing * tokens_per_hash // TRACED_BLOCK]


class BlockNames:
    """Gives equal beginnings of prompts, in full blocks, equal names."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._names: dict[tuple[int, tuple[int, ...]], int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def of(self, prompt: Sequence[int]) -> Iterator[int]:
        """A name for each full block of a prompt; it says what comes before the block too."""
        name, size = 0, self.block_size
        for start in range(0, len(prompt) - size + 1, size):
            content = (name, tuple(prompt[start : start + size]))
            name = self._names.setdefault(content, len(self._names) + 1)
            yield name


def simulate(
    prompts: Sequence[Sequence[int]], block_size: int, max_blocks: int | None = None
) -> list[int]:
    """Tokens of each prompt that a cache has when the prompts come one after the other.

    ``max_blocks`` None is a cache without end; otherwise the least recently used block goes, the
    tail of a prompt before its head. A prompt's last token is computed in any case.
    """
    names, held, found = BlockNames(block_size), OrderedDict[int, None](), []
    for prompt in prompts:
        blocks = list(names.of(prompt))
        reusable = blocks[: (len(prompt) - 1) // block_size]
        num_found = next((i for i, name in enumerate(reusable) if name not in held), len(reusable))
        found.append(num_found * block_size)
        for name in reversed(blocks):
            held[name] = None
            held.move_to_end(name)
        while max_blocks is not None and len(held) > max_blocks:
            held.popitem(last=False)
    return found


def num_distinct_blocks(prompts: Sequence[Sequence[int]], block_size: int) -> int:
    """Blocks that a cache needs to hold all prompts at once."""
    names = BlockNames(block_size)
    for prompt in prompts:
        for _ in names.of(prompt):
            pass
    return len(names)
