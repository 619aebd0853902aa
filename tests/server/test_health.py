"""The readiness rule on a clock that only moves when told to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fake_engine import FakeEngine

from branchline.server.health import ProgressMonitor
from branchline.server.supervisor import EngineSupervisor

N = 10.0


class World:
    """A monitor, its engine and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.engine = FakeEngine()
        self.supervisor = EngineSupervisor(self.engine)
        self.monitor = ProgressMonitor(self.supervisor, N, lambda: self.now)

    def state(self, **stats: Any) -> None:
        """The engine pushes a snapshot."""
        self.engine.stats = replace(self.engine.stats, **stats)
        self.monitor.observe()

    def step(self) -> None:
        self.state(num_steps=self.engine.stats.num_steps + 1)

    @property
    def ready(self) -> bool:
        return self.monitor.readiness().ready


@pytest.fixture
async def world() -> World:
    world = World()
    await world.monitor.probe()
    return world


async def test_not_ready_before_the_first_probe() -> None:
    world = World()
    assert not world.ready
    assert world.monitor.wants_probe
    await world.monitor.probe()
    assert world.ready
    probe = world.engine.requests[0]
    assert probe.params.max_tokens == 1
    assert probe.adapter is None


async def test_idle_a_probe_is_good_for_n_seconds(world: World) -> None:
    world.now += N
    assert world.ready
    world.now += 0.1
    assert not world.ready
    await world.monitor.probe()
    assert world.ready


async def test_idle_a_probe_is_due_after_half_the_time(world: World) -> None:
    world.now += N / 2 - 0.1
    assert not world.monitor.wants_probe
    world.now += 0.1
    assert world.monitor.wants_probe


async def test_a_probe_without_an_answer_leaves_it_unready(world: World) -> None:
    world.engine.go.clear()
    world.now += N + 1
    quick = ProgressMonitor(world.supervisor, 0.05)
    await quick.probe()
    assert not quick.readiness().ready
    assert len(world.engine.aborted) == 1, "the probe does not stay in the engine"
    assert not world.ready


async def test_a_probe_that_fails_leaves_it_unready(world: World) -> None:
    world.engine.error = "RuntimeError: out of everything"
    world.now += N + 1
    await world.monitor.probe()
    assert not world.ready


async def test_with_work_steps_keep_it_ready(world: World) -> None:
    world.state(num_running=1)
    for _ in range(10):
        world.now += N - 1
        world.step()
        assert world.ready
    assert not world.monitor.wants_probe, "steps are proof enough"
    world.now += N + 0.1
    assert not world.ready
    world.step()
    assert world.ready


async def test_with_work_slow_steps_get_more_time(world: World) -> None:
    world.state(num_running=1, p99_step_seconds=3.0)
    world.step()
    world.now += 30.0
    assert world.ready
    world.now += 0.1
    assert not world.ready
    assert "30.1 s" in world.monitor.readiness().reason


async def test_a_full_queue_never_makes_it_unready(world: World) -> None:
    world.state(num_running=256, num_waiting=100_000, num_free_blocks=0)
    for _ in range(100):
        world.now += N / 2
        world.step()
        assert world.ready


async def test_work_that_comes_late_gets_its_full_time(world: World) -> None:
    world.now += N - 1
    world.state(num_waiting=1)
    world.now += N - 1
    assert world.ready, "the step has had N - 1 seconds"
    world.now += 1.1
    assert not world.ready


async def test_failing_steps_are_no_progress(world: World) -> None:
    world.state(num_running=1)
    for count in range(1, 5):
        world.now += N / 2
        world.state(num_steps=count, num_failed_steps=count)
    assert not world.ready


async def test_a_dead_engine_is_not_ready(world: World) -> None:
    world.engine.die("the engine exited with -9")
    state = world.monitor.readiness()
    assert not state.ready
    assert state.reason == "the engine exited with -9"
    assert not world.monitor.wants_probe


async def test_a_restarted_engine_has_to_prove_itself(world: World) -> None:
    world.supervisor.engine = FakeEngine()
    assert not world.ready
    await world.monitor.probe()
    assert world.ready


async def test_the_background_task_probes() -> None:
    supervisor = EngineSupervisor(FakeEngine())
    monitor = ProgressMonitor(supervisor, 0.4)
    task = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        while not monitor.readiness().ready:
            await asyncio.sleep(0.01)
    task.cancel()
