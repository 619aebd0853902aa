"""The block pool as a state machine."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from branchline.engine.blocks import BlockLease, BlockPool


class BlockMachine(RuleBasedStateMachine):
    """Leases and shared blocks against a count kept by hand."""

    @initialize(num_blocks=st.integers(2, 12), block_size=st.integers(1, 5))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.leases: list[BlockLease] = []
        self.shared: list[list[int]] = []

    @rule(num_tokens=st.integers(0, 30))
    def open(self, num_tokens: int) -> None:
        lease = BlockLease(self.pool)
        self._grow(lease, num_tokens)
        self.leases.append(lease)

    @rule(data=st.data(), num_tokens=st.integers(0, 30))
    def grow(self, data: st.DataObject, num_tokens: int) -> None:
        if self.leases:
            self._grow(data.draw(st.sampled_from(self.leases)), num_tokens)

    def _grow(self, lease: BlockLease, num_tokens: int) -> None:
        before, free = list(lease.block_ids), self.pool.num_free
        missing = lease.num_missing(num_tokens)
        grown = lease.grow(num_tokens)
        assert grown == (missing <= free)
        assert lease.block_ids[: len(before)] == before
        assert len(lease.block_ids) == len(before) + (missing if grown else 0)
        assert lease.num_slots >= num_tokens or not grown

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        if self.leases:
            held = data.draw(st.sampled_from(self.leases)).block_ids
            prefix = held[: data.draw(st.integers(0, len(held)))]
            self.pool.share(prefix)
            self.shared.append(list(prefix))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
            held = set(lease.block_ids)
            assert set(lease.release()) == held - self._held()

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.shared:
            block_ids = self.shared.pop(data.draw(st.integers(0, len(self.shared) - 1)))
            assert set(self.pool.drop(block_ids)) == set(block_ids) - self._held()

    def _held(self) -> set[int]:
        lists = [*(lease.block_ids for lease in self.leases), *self.shared]
        return {block_id for block_ids in lists for block_id in block_ids}

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()
            assert self.pool.num_free == self.pool.num_usable - len(self._held())


TestBlocks = BlockMachine.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=25)
