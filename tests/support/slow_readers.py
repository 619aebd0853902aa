"""An engine loop whose requests are held and go on again all the time, as chance has it."""

from __future__ import annotations

import random

from branchline.engine.loop import EngineLoop
from branchline.engine.types import EngineStats, GenerationRequest, TokenOutput


class SlowReaders:
    """Stands in for the loop where requests are run to their ends.

    What a held request gives is checked: at most the token of the step that was under way.
    """

    def __init__(self, loop: EngineLoop, seed: int, hold: float = 0.3, go_on: float = 0.3) -> None:
        self._loop = loop
        self._chance = random.Random(seed)
        self._hold, self._go_on = hold, go_on
        self._live: dict[str, bool] = {}
        self._num_late: dict[str, int] = {}

    def add(self, request: GenerationRequest) -> list[TokenOutput]:
        outputs = self._loop.add(request)
        self._live[request.request_id] = False
        self._note(outputs)
        return outputs

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def step(self) -> list[TokenOutput]:
        for request_id, is_held in self._live.items():
            if not is_held and self._chance.random() < self._hold:
                self._loop.hold(request_id)
                self._live[request_id], self._num_late[request_id] = True, 0
            elif is_held and self._chance.random() < self._go_on:
                self._loop.go_on(request_id)
                self._live[request_id] = False
        outputs = self._loop.step() if self._loop.has_work else []
        self._note(outputs)
        return outputs

    def _note(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            if self._live[output.request_id]:
                self._num_late[output.request_id] += 1
                assert self._num_late[output.request_id] == 1, "computed while it was held"
            if output.finish_reason is not None:
                del self._live[output.request_id]

    def check(self) -> None:
        self._loop.check()

    def stats(self) -> EngineStats:
        return self._loop.stats()
