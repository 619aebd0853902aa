"""Leases go back when the last launched step that reads them has finished, not before."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.engine.fence import StepFence


@dataclass
class Lease:
    num_releases: int = 0

    def release(self) -> None:
        self.num_releases += 1


def test_without_a_step_under_way_a_lease_goes_back_at_once():
    fence, lease = StepFence(), Lease()
    fence.release(lease, last_step=0)
    assert lease.num_releases == 1
    step = fence.launch()
    assert not fence.is_idle
    fence.finish(step)
    fence.release(lease, last_step=step)
    assert (lease.num_releases, fence.num_deferred) == (2, 0)


def test_a_lease_waits_for_the_last_step_that_reads_it():
    fence, lease = StepFence(), Lease()
    first, second = fence.launch(), fence.launch()
    fence.release(lease, last_step=second)
    fence.finish(first)
    assert (lease.num_releases, fence.num_deferred) == (0, 1)
    fence.finish(second)
    assert (lease.num_releases, fence.num_deferred) == (1, 0)
    assert fence.is_idle


def test_a_lease_that_no_step_under_way_reads_does_not_wait():
    fence, lease = StepFence(), Lease()
    first, _ = fence.launch(), fence.launch()
    fence.finish(first)
    fence.release(lease, last_step=first)
    assert lease.num_releases == 1


def test_steps_are_numbered_from_one_on_and_finish_in_order():
    fence = StepFence()
    assert fence.next_step == 1
    assert [fence.launch(), fence.launch()] == [1, 2]
    with pytest.raises(AssertionError, match="in order"):
        fence.finish(2)


class FenceMachine(RuleBasedStateMachine):
    """``last_steps`` are the leases that were given up, each with the last step that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.fence = StepFence()
        self.launched = self.finished = 0
        self.last_steps: list[tuple[Lease, int]] = []

    @precondition(lambda self: self.launched - self.finished < 3)
    @rule()
    def launch(self) -> None:
        self.launched += 1
        assert self.fence.launch() == self.launched

    @precondition(lambda self: self.launched > self.finished)
    @rule()
    def finish(self) -> None:
        self.finished += 1
        self.fence.finish(self.finished)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = Lease()
        last_step = data.draw(st.integers(0, self.launched))
        self.last_steps.append((lease, last_step))
        self.fence.release(lease, last_step)

    @invariant()
    def nothing_is_back_too_soon_or_twice(self) -> None:
        for lease, last_step in self.last_steps:
            assert lease.num_releases <= int(last_step <= self.finished)
            if self.finished == self.launched:
                assert lease.num_releases == 1
        waiting = sum(not lease.num_releases for lease, _ in self.last_steps)
        assert self.fence.num_deferred == waiting


TestFence = FenceMachine.TestCase
TestFence.settings = settings(max_examples=60, stateful_step_count=30)
