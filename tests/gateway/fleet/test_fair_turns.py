"""Turns at what is scarce: few at once, fewer of one key, and no key before its time."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.gateway.fleet.fair_turns import FairTurns


class Asking:
    """Asks for turns and notes who has one."""

    def __init__(self, turns: FairTurns) -> None:
        self._turns = turns
        self.inside: list[str] = []
        self.order: list[str] = []
        self.may_go: dict[asyncio.Task[None], asyncio.Event] = {}

    def ask(self, key: str) -> asyncio.Task[None]:
        go = asyncio.Event()
        task = asyncio.create_task(self._ask(key, go))
        self.may_go[task] = go
        return task

    async def _ask(self, key: str, go: asyncio.Event) -> None:
        async with self._turns.take(key):
            self.inside.append(key)
            self.order.append(key)
            try:
                await go.wait()
            finally:
                self.inside.remove(key)

    async def end(self, task: asyncio.Task[None]) -> None:
        self.may_go.pop(task).set()
        await task
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_key_leaves_turns_to_others() -> None:
    asking = Asking(FairTurns(4, 2))
    first = [asking.ask("a") for _ in range(10)]
    await settled()
    assert asking.inside == ["a", "a"]
    for key in ("b", "c"):
        asking.ask(key)
    await settled()
    assert asking.inside == ["a", "a", "b", "c"]
    for task in first:
        await asking.end(task)
    for task in list(asking.may_go):
        await asking.end(task)
    assert asking.inside == []


async def test_who_waits_goes_round_by_key() -> None:
    turns, order = FairTurns(1, 1), list[str]()

    async def ask(key: str) -> None:
        async with turns.take(key):
            order.append(key)
            await settled()

    await asyncio.gather(*(ask(key) for key in "aaaabbc"))
    assert "".join(order) == "aabcaba"


async def test_who_leaves_takes_nothing_along() -> None:
    asking = Asking(FairTurns(1, 1))
    has, waits, stays = (asking.ask(key) for key in "aab")
    await settled()
    waits.cancel()
    await asking.end(has)
    assert asking.inside == ["b"]
    handed = asking.ask("a")
    await settled()
    asking.may_go.pop(stays).set()
    await stays  # the turn is handed over, and its new owner has not run yet
    handed.cancel()
    await settled()
    last = asking.ask("c")
    await settled()
    assert asking.inside == ["c"]
    await asking.end(last)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("+-x")), max_size=40))
def test_no_turn_is_lost_and_none_is_made(steps: list[tuple[str, str]]) -> None:
    """``+`` asks, ``-`` ends the oldest that asked, ``x`` cancels the newest."""

    async def run() -> None:
        asking = Asking(FairTurns(3, 2))
        for key, step in steps:
            tasks = list(asking.may_go)
            if step == "+":
                asking.ask(key)
            elif step == "-" and tasks:
                asking.may_go[tasks[0]].set()
            elif tasks:
                tasks[-1].cancel()
            await settled()
            for task in [task for task in asking.may_go if task.done()]:
                del asking.may_go[task]
            assert len(asking.inside) <= 3
            asked = len(asking.may_go) - len(asking.inside)
            for one in "abc":
                assert asking.inside.count(one) <= 2
            if asked and len(asking.inside) < 3:
                assert any(asking.inside.count(one) == 2 for one in "abc")
        for task in asking.may_go:
            task.cancel()
        await asyncio.gather(*asking.may_go, return_exceptions=True)
        assert asking.inside == []
        again = [asking.ask(one) for one in "aabb"]
        await settled()
        assert len(asking.inside) == 3
        for task in again:
            await asking.end(task)

    asyncio.run(run())
