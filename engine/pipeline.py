"""Keeps steps under way: plans the next one while the last one runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .plan import StepPlan, StepResult
from .scheduler import Scheduler
from .types import TokenOutput


class LaunchedStep(Protocol):
    """A step on the device."""

    def result(self) -> StepResult:
        """Wait for it. Raises what the step failed with."""


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that is through: its plan, how long it took, why it failed if it did.

    ``seconds`` are counted from its launch, or from the end of the step before if that was later.
    """

    plan: StepPlan
    seconds: float
    outputs: list[TokenOutput]
    error: Exception | None = None


class StepPipeline:
    """Schedules, launches and applies steps, with at most ``depth`` (0 or 1) left under way.

    With depth 0 each step is taken in before the next is planned. With depth 1 the next one is
    launched first: it computes tokens whose inputs nobody has seen yet, and what turns out to be
    past a request's end is discarded.
    """

    def __init__(
        self, scheduler: Scheduler, launch: Callable[[StepPlan], LaunchedStep], depth: int = 0
    ) -> None:
        assert depth in (0, 1)
        self._scheduler = scheduler
        self._launch = launch
        self._depth = depth
        self._under_way: deque[tuple[StepPlan, LaunchedStep, float]] = deque()
        self._last_end = 0.0

    @property
    def has_work(self) -> bool:
        """Whether there is anything to plan or to wait for."""
        return bool(self._under_way) or self._scheduler.has_requests

    @property
    def is_running(self) -> bool:
        """Whether a step is under way."""
        return bool(self._under_way)

    def advance(self) -> list[FinishedStep]:
        """Launch one step if there is one, and return those that were taken in."""
        finished = []
        if self._scheduler.needs_drain:
            finished += self._take_in(0)
        plan = self._scheduler.schedule()
        if plan.chunks:
            started = time.perf_counter()
            try:
                self._under_way.append((plan, self._launch(plan), started))
            except Exception as error:
                finished += self._take_in(0)
                finished.append(self._failed(plan, started, error))
        return finished + self._take_in(self._depth if plan.chunks else 0)

    def _take_in(self, num_left: int) -> list[FinishedStep]:
        """Wait for the oldest steps until ``num_left`` are under way."""
        finished = []
        while len(self._under_way) > num_left:
            plan, step, started = self._under_way.popleft()
            try:
                result = step.result()
            except Exception as error:
                finished.append(self._failed(plan, started, error))
                continue
            seconds = self._seconds_since(started)
            outputs = self._scheduler.apply(plan, result.sampled, result.prompts)
            finished.append(FinishedStep(plan, seconds, outputs))
        return finished

    def _failed(self, plan: StepPlan, started: float, error: Exception) -> FinishedStep:
        outputs = self._scheduler.fail(plan, f"{type(error).__name__}: {error}")
        return FinishedStep(plan, self._seconds_since(started), outputs, error)

    def _seconds_since(self, started: float) -> float:
        """Of a step that ends now: what it took beside the steps that ended before it."""
        before, self._last_end = self._last_end, time.perf_counter()
        return self._last_end - max(started, before)
