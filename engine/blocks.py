"""KV blocks: fixed-size pages of the cache, each free or held by one owner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PADDING_BLOCK = 0
"""Padded block tables point at it; nothing is ever written to it."""

SCRAP_BLOCK = 1
"""Takes the KV of tokens that are computed again over a shared block; nothing ever reads it."""

NUM_RESERVED_BLOCKS = 2


class BlockPool:
    """All KV blocks of one engine.

    Freed blocks go to the end of the queue, so the block unused for longest is taken first. What
    a block's last holder left is cleared before the next one's first step: see
    ``blocks_to_clear``.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks <= NUM_RESERVED_BLOCKS:
            raise ValueError(f"num_blocks must be over {NUM_RESERVED_BLOCKS}, not {num_blocks}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(NUM_RESERVED_BLOCKS, num_blocks))
        self._held = bytearray(num_blocks)
        self._used = bytearray(num_blocks)
        self._unclean: dict[int, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """Blocks that can be held in all."""
        return self.num_blocks - NUM_RESERVED_BLOCKS

    def take(self, num_blocks: int, *, overwritten: bool = False) -> list[int] | None:
        """``num_blocks`` free blocks, or None and nothing taken.

        ``overwritten`` says that all of each block is written before anything reads it.
        """
        if num_blocks > len(self._free):
            return None
        taken = [self._free.popleft() for _ in range(num_blocks)]
        for block_id in taken:
            self._held[block_id] = 1
            if self._used[block_id] and not overwritten:
                self._unclean[block_id] = None
            self._used[block_id] = 1
        return taken

    def give_back(self, block_ids: Iterable[int]) -> None:
        """Free blocks that are held."""
        for block_id in block_ids:
            assert self._held[block_id], f"block {block_id} is free already"
            self._held[block_id] = 0
            self._unclean.pop(block_id, None)
            self._free.append(block_id)

    def blocks_to_clear(self) -> tuple[int, ...]:
        """Held blocks whose last holder's KV is still there; the next step must zero them."""
        unclean = tuple(self._unclean)
        self._unclean.clear()
        return unclean

    def check(self) -> None:
        """Every block is free once or held; the reserved ones are neither."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert min(free, default=NUM_RESERVED_BLOCKS) >= NUM_RESERVED_BLOCKS
        assert not any(self._held[:NUM_RESERVED_BLOCKS])
        for block_id in range(NUM_RESERVED_BLOCKS, self.num_blocks):
            assert self._held[block_id] != (block_id in free), f"block {block_id} is lost"
        assert all(self._held[block_id] for block_id in self._unclean)
