"""Turns: bounded, in order, never lost."""

from __future__ import annotations

import asyncio

from branchline.gateway.proxy.guard import Guard, Watchdog
from branchline.gateway.proxy.turns import Turn, Turns


async def test_turns_are_handed_out_in_order() -> None:
    turns, got = Turns(2), list[int]()
    first, second = await turns.take(), await turns.take()

    async def wait(number: int) -> Turn:
        turn = await turns.take()
        got.append(number)
        return turn

    tasks = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert not got
    first.release()
    first.release()
    await asyncio.sleep(0)
    assert got == [0]
    tasks[1].cancel()
    second.release()
    assert await tasks[2] is not None
    assert got == [0, 2]
    for turn in (await tasks[0], await tasks[2]):
        turn.release()
    assert turns._num_free == 2


async def test_a_turn_given_to_one_that_gave_up_is_the_next_ones() -> None:
    turns = Turns(1)
    turn = await turns.take()
    task = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    turn.release()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (await asyncio.wait_for(turns.take(), 1)).release()


async def test_a_turn_ends_by_itself() -> None:
    turns = Turns(1)
    await turns.take()
    await asyncio.wait_for(turns.take(), 2)


async def test_a_late_loop_is_no_replicas_silence() -> None:
    now = [100.0]
    watchdog = Watchdog(lambda: now[0])

    async def wait() -> str:
        guard = Guard(lambda: now[0])
        watchdog.add(guard)
        return await guard.read(asyncio.sleep(0.05, "here"), 5.0)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    now[0] += 8
    assert watchdog.was_late
    watchdog.sweep()
    assert watchdog.was_late
    assert await task == "here"
    for _ in range(100):
        now[0] += 0.05
        watchdog.sweep()
    assert not watchdog.was_late
