"""How an engine comes up, told to who waits for it: a bar on a terminal, else a few lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from ..engine.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
GIB = 1 << 30


class StartProgress:
    """Takes what the engine says; ``say`` prints a line, ``stream`` has the bar if a terminal."""

    def __init__(
        self,
        say: Callable[[str], None],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._stream = stream or sys.stderr
        self._clock = clock
        self._bar: tqdm[Any] | None = None
        self._text: str | None = None
        self._next_line = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show it, unless the last line is too recent."""
        if progress.done is None or progress.total is None:
            self.close()
            self._say(progress.text)
            return
        if progress.text != self._text:
            self._begin(progress.text, progress.total)
        if self._bar is not None:
            self._bar.update(progress.done - self._bar.n)
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + SECONDS_BETWEEN_LINES
            done, total = progress.done / GIB, progress.total / GIB
            self._say(f"{progress.text}: {done:.1f} of {total:.1f} GiB")

    def _begin(self, text: str, total: int) -> None:
        self.close()
        self._text = text
        self._next_line = self._clock() + SECONDS_BETWEEN_LINES
        if self._stream.isatty():
            self._bar = tqdm(
                desc=text,
                total=total,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                leave=False,
                file=self._stream,
            )

    def close(self) -> None:
        """Take the bar away."""
        self._text = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
