"""Whom to ask next, and when to wait no longer; time is the test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_replicas import FakeReplica

from branchline.gateway.adapters.asking import FIRST_PAUSE, Patience, Tries
from branchline.gateway.errors import GatewayError
from branchline.gateway.types import ReplicaView


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("branchline.gateway.adapters.asking.time.monotonic", clock)
    monkeypatch.setattr("branchline.gateway.adapters.asking.asyncio.sleep", clock.sleep)
    return clock


def views(*names: str) -> list[ReplicaView]:
    return [FakeReplica(name).view() for name in names]


async def test_each_is_asked_once_and_who_joins_too(clock: Clock) -> None:
    there = views("a", "b")
    tries = Tries(lambda: there, 6.0, asked=["b"])
    assert [one.replica_id for one in await tries.next(2)] == ["a"]
    assert await tries.next(2) == []
    there += views("c")
    assert [one.replica_id for one in await tries.next(2)] == ["c"]


async def test_those_that_failed_are_asked_again_less_and_less_often(clock: Clock) -> None:
    there = views("a")
    tries = Tries(lambda: there, 6.0)
    times: list[float] = []

    async def ask_for_ever() -> None:
        while True:
            for replica in await tries.next(1):
                times.append(clock.now - 100)
                tries.failed(replica)

    with pytest.raises(GatewayError) as caught:
        await ask_for_ever()
    assert caught.value.status == 503
    assert times == [0.0, 0.5, 1.5, 3.5, 6.0]
    assert clock.pauses[0] == FIRST_PAUSE


async def test_who_did_it_is_asked_again_only_as_another_process(clock: Clock) -> None:
    there = views("a")
    tries = Tries(lambda: there, 6.0)
    [a] = await tries.next(1)
    assert await tries.next(1) == []
    tries.forget(a)
    assert await tries.next(1) == [a]


@pytest.mark.parametrize(
    ("looks", "is_over"),
    [
        # (seconds since the last look, standing)
        ([(0.5, True), (0.5, None)], True),
        ([(0.5, False)] * 10, False),
        ([(0.5, False)] * 11, True),
        ([(0.5, False)] * 9 + [(0.5, True)] + [(0.5, False)] * 9, False),
        ([(60.0, False)], False),  # we were blind, or nobody looked
        ([(60.0, True), (0.5, False)], False),
        ([(60.0, False)] * 6, True),
    ],
)
def test_patience(looks: list[tuple[float, bool | None]], is_over: bool) -> None:
    clock, standings = Clock(), iter([standing for _, standing in looks])
    patience = Patience(lambda: next(standings), seconds=5.0, clock=clock)
    for seconds, _ in looks:
        clock.now += seconds
        found = patience.is_over()
    assert found == is_over
