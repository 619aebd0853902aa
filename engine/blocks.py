"""KV blocks: fixed-size pages of the cache, reference-counted, held through leases."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class BlockPool:
    """All KV blocks of one engine; a block is free or held by one lease or more.

    Freed blocks go to the end of the queue, so the block unused for longest is taken
    first. Block 0 is never handed out: padded block tables point at it.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2, not {num_blocks}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(1, num_blocks))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """Blocks that requests can hold in all."""
        return self.num_blocks - 1

    def take(self, num_blocks: int) -> list[int] | None:
        """``num_blocks`` free blocks with one reference each, or None and nothing taken."""
        if num_blocks > len(self._free):
            return None
        taken = [self._free.popleft() for _ in range(num_blocks)]
        for block_id in taken:
            self._ref_counts[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference to blocks that are held already."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, f"block {block_id} is free"
            self._ref_counts[block_id] += 1

    def drop(self, block_ids: Iterable[int]) -> list[int]:
        """Give one reference of each back; returns the blocks that became free."""
        freed = []
        for block_id in block_ids:
            self._ref_counts[block_id] -= 1
            assert self._ref_counts[block_id] >= 0, f"block {block_id} was dropped twice"
            if self._ref_counts[block_id] == 0:
                freed.append(block_id)
        self._free.extend(freed)
        return freed

    def check(self) -> None:
        """Every block is either free once or held; block 0 is neither."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert 0 not in free, "block 0 is not to be taken"
        for block_id in range(1, self.num_blocks):
            held = self._ref_counts[block_id] > 0
            assert held != (block_id in free), f"block {block_id} is lost or both free and held"


class BlockLease:
    """The blocks of one request, in sequence order; grows as the request does."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.block_ids: list[int] = []

    @property
    def num_slots(self) -> int:
        """Tokens that fit in the blocks held."""
        return len(self.block_ids) * self._pool.block_size

    def num_missing(self, num_tokens: int) -> int:
        """Blocks to take before ``num_tokens`` tokens fit."""
        return max(0, -(-num_tokens // self._pool.block_size) - len(self.block_ids))

    def grow(self, num_tokens: int) -> bool:
        """Hold enough for ``num_tokens`` tokens; False, and unchanged, if blocks ran out."""
        missing = self.num_missing(num_tokens)
        if not missing:
            return True
        taken = self._pool.take(missing)
        if taken is None:
            return False
        self.block_ids.extend(taken)
        return True

    def release(self) -> list[int]:
        """Give all back, the tail first; returns the blocks that became free."""
        freed = self._pool.drop(reversed(self.block_ids))
        self.block_ids = []
        return freed
