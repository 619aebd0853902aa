"""Interruptions: silence, losses and clients that leave, each told from the other."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from fleet_values import FakeClock

from branchline.gateway.proxy.guard import ClientGone, Guard, UpstreamLost, Watchdog


class Lost:
    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.lost_reason = "wedged"


async def interrupted(act: object, *, sending: bool = False) -> BaseException:
    """What a wait ends with when ``act(guard)`` happens during it."""
    clock = FakeClock()
    caught: list[BaseException] = []

    async def wait() -> None:
        guard = Guard(clock)
        asyncio.get_running_loop().call_soon(act, guard, clock)  # type: ignore[arg-type]
        try:
            if sending:
                await guard.send(asyncio.sleep(60), 5.0)
            else:
                await guard.read(asyncio.sleep(60), 5.0)
        except BaseException as error:
            caught.append(error)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    async with asyncio.timeout(5):
        await asyncio.create_task(wait())
    return caught[0]


async def test_silence() -> None:
    def act(guard: Guard, clock: FakeClock) -> None:
        guard.sweep(clock())
        clock.now += 6
        guard.sweep(clock())

    error = await interrupted(act)
    assert isinstance(error, UpstreamLost)
    assert error.outcome == "stalled"
    assert isinstance(await interrupted(act, sending=True), ClientGone)


async def test_a_lost_replica_interrupts_reads_and_not_sends() -> None:
    def act(guard: Guard, clock: FakeClock) -> None:
        guard.flight = Lost()  # type: ignore[assignment]
        guard.flight.lost.set()
        guard.sweep(clock())
        if guard._is_sending:
            guard.client_left()

    assert str(await interrupted(act)) == "wedged"
    assert isinstance(await interrupted(act, sending=True), ClientGone)


async def test_a_client_that_left_comes_before_all_else() -> None:
    def act(guard: Guard, clock: FakeClock) -> None:
        guard.lose("gone")
        guard.client_left()

    assert isinstance(await interrupted(act), ClientGone)


async def test_a_late_read_may_be_given_more_time() -> None:
    def act(guard: Guard, clock: FakeClock) -> None:
        asked: list[float] = []
        guard.when_late = lambda: asked.append(clock())
        clock.now += 6
        guard.sweep(clock())
        guard.sweep(clock())
        assert len(asked) == 1
        guard.extend(5)
        clock.now += 4
        guard.sweep(clock())
        assert len(asked) == 1
        guard.lose("does not know it", "stalled")

    assert str(await interrupted(act)) == "does not know it"


async def test_a_foreign_cancellation_stays_one() -> None:
    async def wait() -> None:
        await Guard().read(asyncio.sleep(60), 5.0)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_watchdog_sweeps_what_it_was_given() -> None:
    clock = FakeClock()
    watchdog = Watchdog(clock)

    async def wait() -> str:
        guard = Guard(clock)
        watchdog.add(guard)
        try:
            await guard.read(asyncio.sleep(60), 5.0)
        except UpstreamLost as lost:
            return str(lost)
        finally:
            watchdog.remove(guard)
        return ""

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    for _ in range(102):
        clock.now += 0.05
        watchdog.sweep()
    assert await task == "silence"
    assert not watchdog._guards


async def test_a_swallowed_interruption_comes_at_the_next_wait() -> None:
    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    async def wait() -> None:
        guard = Guard()
        asyncio.get_running_loop().call_soon(guard.client_left)
        await guard.read(swallow(), 5.0)
        with pytest.raises(ClientGone):
            await guard.send(asyncio.sleep(60), 5.0)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    async with asyncio.timeout(5):
        await asyncio.create_task(wait())
