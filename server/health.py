"""Whether the engine gets anywhere: the readiness rule and its self-probe."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from ..engine.errors import EngineError
from ..engine.types import EngineStats, GenerationRequest, SamplingParams
from .supervisor import EngineSupervisor

logger = logging.getLogger(__name__)

STEP_FACTOR = 10


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer of ``/ready``; ``reason`` says why not."""

    ready: bool
    reason: str


class ProgressMonitor:
    """Watches the engine's step counter; probes with one token when there is no work.

    With work, ready means that a step finished within ``max(timeout, 10 x p99 step)``
    seconds; idle, that a probe did within ``timeout``. How many requests wait plays no part.
    ``observe`` must be called now and then: ``run`` does, and so does each ``/ready``.
    """

    def __init__(
        self,
        supervisor: EngineSupervisor,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._timeout = timeout
        self._clock = clock
        self._last_progress: float | None = None
        self._work_since: float | None = None
        self._engine: object = supervisor.engine
        self._num_steps = _num_good_steps(supervisor.stats)

    def observe(self) -> None:
        """Note progress and the coming and going of work."""
        now, stats = self._clock(), self._supervisor.stats
        if self._supervisor.engine is not self._engine:
            self._engine, self._last_progress = self._supervisor.engine, None
        elif _num_good_steps(stats) != self._num_steps:
            self._last_progress = now
        self._num_steps = _num_good_steps(stats)
        if not stats.num_running + stats.num_waiting:
            self._work_since = None
        elif self._work_since is None:
            self._work_since = now

    def readiness(self) -> Readiness:
        """Whether requests sent now would get anywhere."""
        if not self._supervisor.alive:
            return Readiness(False, self._supervisor.engine.exit_reason or "the engine is gone")
        self.observe()
        if self._last_progress is None:
            return Readiness(False, "the engine has not answered its first probe yet")
        allowed = self._timeout
        since = self._last_progress
        if self._work_since is not None:
            allowed = max(allowed, STEP_FACTOR * self._supervisor.stats.p99_step_seconds)
            since = max(since, self._work_since)
        seconds = self._clock() - since
        if seconds <= allowed:
            return Readiness(True, "ok")
        return Readiness(
            False, f"no engine step has finished for {seconds:.1f} s (allowed: {allowed:.1f} s)"
        )

    @property
    def wants_probe(self) -> bool:
        """Whether the engine is idle and its last sign of life is getting old."""
        if not self._supervisor.alive or self._work_since is not None:
            return False
        last = self._last_progress
        return last is None or self._clock() - last >= self._timeout / 2

    async def probe(self) -> None:
        """Have the engine generate one token; a failure shows as missing progress."""
        request = GenerationRequest(
            request_id=f"probe-{uuid.uuid4().hex}",
            prompt_token_ids=[0],
            params=SamplingParams(temperature=0.0, max_tokens=1, seed=0, ignore_eos=True),
        )
        try:
            async with asyncio.timeout(self._timeout):
                async with aclosing(self._supervisor.generate(request)) as outputs:
                    async for output in outputs:
                        if output.finish_reason == "error":
                            logger.error("the self-probe failed: %s", output.error)
                            return
            self._last_progress = self._clock()
        except TimeoutError:
            logger.warning("the self-probe got no answer within %g s", self._timeout)
        except EngineError as error:
            logger.warning("the self-probe failed: %s", error)

    async def run(self) -> None:
        """Observe and probe until cancelled."""
        while True:
            self.observe()
            if self.wants_probe:
                await self.probe()
            await asyncio.sleep(min(1.0, self._timeout / 8))


def _num_good_steps(stats: EngineStats) -> int:
    return stats.num_steps - stats.num_failed_steps
