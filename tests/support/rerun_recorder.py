"""A recorder for the CPU: a replay runs the function again over whatever is in its memory then."""

from __future__ import annotations

from collections.abc import Callable


class RerunRecorder:
    """Counts what it records and replays."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replays = 0

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.num_recorded += 1

        def replay() -> None:
            self.num_replays += 1
            run()

        return replay
