from __future__ import annotations

import asyncio

import pytest
from fake_engine import FakeEngine

from branchline.engine.errors import EngineDeadError, EngineStartError
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.server.supervisor import MAX_RESTARTS, EngineSupervisor

REQUEST = GenerationRequest(
    request_id="r", prompt_token_ids=[1], params=SamplingParams(max_tokens=3, seed=0)
)


class Factory:
    """Starts engines, ``fail`` of them not."""

    def __init__(self, fail: bool = False) -> None:
        self.engines: list[FakeEngine] = []
        self.fail = fail

    async def __call__(self) -> FakeEngine:
        if self.fail:
            raise EngineStartError("no memory")
        self.engines.append(FakeEngine())
        return self.engines[-1]


async def test_without_restart_the_first_death_is_the_end() -> None:
    engine = FakeEngine()
    supervisor = EngineSupervisor(engine)
    watching = asyncio.create_task(supervisor.watch())
    engine.die()
    await asyncio.wait_for(watching, 5)
    assert supervisor.failed.is_set()
    with pytest.raises(EngineDeadError, match="-9"):
        supervisor.generate(REQUEST)


async def test_with_restart_requests_go_to_the_new_engine() -> None:
    engine, factory = FakeEngine(), Factory()
    supervisor = EngineSupervisor(engine, factory)
    watching = asyncio.create_task(supervisor.watch())
    engine.die()
    with pytest.raises(EngineDeadError, match="restarting"):
        supervisor.generate(REQUEST)
    async with asyncio.timeout(5):
        while not supervisor.alive:
            await asyncio.sleep(0)
    assert [output.token_ids async for output in supervisor.generate(REQUEST)]
    assert factory.engines[0].requests == [REQUEST]
    assert not supervisor.failed.is_set()
    watching.cancel()


async def test_an_engine_that_does_not_come_back_is_the_end() -> None:
    engine = FakeEngine()
    supervisor = EngineSupervisor(engine, Factory(fail=True))
    engine.die()
    await asyncio.wait_for(supervisor.watch(), 5)
    assert supervisor.failed.is_set()


async def test_an_engine_that_keeps_dying_is_given_up() -> None:
    factory = Factory()
    now = 0.0
    supervisor = EngineSupervisor(await factory(), factory, lambda: now)
    watching = asyncio.create_task(supervisor.watch())
    async with asyncio.timeout(5):
        while not watching.done():
            factory.engines[-1].die()
            await asyncio.sleep(0)
    assert len(factory.engines) == 1 + MAX_RESTARTS


async def test_deaths_long_ago_do_not_count() -> None:
    factory = Factory()
    now = 0.0
    supervisor = EngineSupervisor(await factory(), factory, lambda: now)
    watching = asyncio.create_task(supervisor.watch())
    for count in range(2, 20):
        now += 1000.0
        factory.engines[-1].die()
        async with asyncio.timeout(5):
            while len(factory.engines) < count or not supervisor.alive:
                await asyncio.sleep(0)
    assert not supervisor.failed.is_set()
    watching.cancel()


async def test_a_stop_is_not_a_death() -> None:
    factory = Factory()
    supervisor = EngineSupervisor(await factory(), factory)
    watching = asyncio.create_task(supervisor.watch())
    await asyncio.sleep(0)
    await supervisor.stop()
    await asyncio.wait_for(watching, 5)
    assert not supervisor.failed.is_set()
    assert len(factory.engines) == 1
