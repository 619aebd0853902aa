"""The prefix cache alone: what finding, committing and evicting a long prompt costs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool
from branchline.engine.cache_types import Namespace
from branchline.engine.prefix_cache import BlockLease, PrefixCache
from branchline.engine.prefix_key import PrefixKey

from .steps import BLOCK_SIZE, VOCAB_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """A full pool: ``num_prompts`` of ``prompt_tokens``, each off another after ``branch_every``.

    A prompt of the tree is a chain of nodes of ``branch_every`` tokens: as many ways lead off it.
    """

    prompt_tokens: int = 32_768
    branch_every: int = 512
    num_others: int = 1000
    other_tokens: int = 512
    tenant: str = "tenant"


@dataclass(frozen=True, slots=True)
class TreeCost:
    """Seconds of one prompt's way through the cache."""

    key: float
    match: float
    grow: float
    commit: float
    release: float


class LongPrompts:
    """A cache with one long prompt that many others branch off, and with unrelated ones."""

    def __init__(self, forest: Forest, clock: Callable[[], float] = time.perf_counter) -> None:
        self._forest = forest
        self._clock = clock
        self._random = random.Random(0)
        blocks = forest.prompt_tokens // BLOCK_SIZE
        branches = forest.prompt_tokens // forest.branch_every
        others = forest.num_others * (forest.other_tokens // BLOCK_SIZE)
        # Room for all of it and half a long prompt: the next one has to evict.
        num_blocks = blocks + branches + others + blocks // 2
        self.cache = PrefixCache(BlockPool(num_blocks + NUM_RESERVED_BLOCKS, BLOCK_SIZE), "model")
        self.prompt = self.tokens(forest.prompt_tokens)
        for _ in range(forest.num_others):
            self.insert(self.tokens(forest.other_tokens))
        self.insert(self.prompt)
        for end in range(forest.branch_every, forest.prompt_tokens, forest.branch_every):
            self.insert(self.prompt[:end] + self.tokens(BLOCK_SIZE))

    def tokens(self, num_tokens: int) -> list[int]:
        """Random ids."""
        return self._random.choices(range(VOCAB_SIZE), k=num_tokens)

    def insert(self, prompt: list[int]) -> TreeCost:
        """A request's way from its tokens to their blocks in the tree, and its end."""
        times = [self._clock()]
        key = PrefixKey(BLOCK_SIZE, Namespace("model"))
        key.extend_to(prompt)
        times.append(self._clock())
        lease = BlockLease(self.cache, self._forest.tenant)
        self.cache.match(lease, key)
        times.append(self._clock())
        assert self.cache.grow(lease, len(prompt))
        times.append(self._clock())
        self.cache.commit(lease, key, len(prompt))
        times.append(self._clock())
        lease.release()
        times.append(self._clock())
        return TreeCost(*(after - before for before, after in pairwise(times)))

    def found(self, num_rounds: int) -> Iterator[TreeCost]:
        """The long prompt again and again, all of it there."""
        for _ in range(num_rounds):
            yield self.insert(self.prompt)

    def fresh(self, num_rounds: int) -> Iterator[TreeCost]:
        """Long prompts that nobody sent: each evicts others to get its blocks."""
        for _ in range(num_rounds):
            yield self.insert(self.tokens(self._forest.prompt_tokens))
