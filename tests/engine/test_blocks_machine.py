"""The block pool as a state machine."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool


class BlockMachine(RuleBasedStateMachine):
    """Blocks against a count kept by hand; a block is clean, or has what a holder left in it."""

    @initialize(num_usable=st.integers(1, 10))
    def start(self, num_usable: int) -> None:
        self.pool = BlockPool(num_usable + NUM_RESERVED_BLOCKS, block_size=2)
        self.held: dict[int, bool] = {}  # whether the holder may read what is in it
        self.dirty: set[int] = set()

    @rule(num_blocks=st.integers(0, 12), overwritten=st.booleans())
    def take(self, num_blocks: int, overwritten: bool) -> None:
        free = self.pool.num_free
        taken = self.pool.take(num_blocks, overwritten=overwritten)
        assert (taken is None) == (num_blocks > free)
        for block_id in taken or ():
            assert block_id not in self.held
            self.held[block_id] = overwritten or block_id not in self.dirty
            self.dirty.add(block_id)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.held:
            blocks = data.draw(st.sets(st.sampled_from(sorted(self.held)), min_size=1))
            self.pool.give_back(blocks)
            for block_id in blocks:
                del self.held[block_id]

    @rule()
    def step(self) -> None:
        """A step clears what it is told to, and then reads every block that is held."""
        for block_id in self.pool.blocks_to_clear():
            assert not self.held[block_id], "a block in use was cleared"
            self.held[block_id] = True
        assert all(self.held.values()), "somebody reads what another left"

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()
            assert self.pool.num_free == self.pool.num_usable - len(self.held)


TestBlocks = BlockMachine.TestCase
