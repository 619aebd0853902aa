"""The start of an engine on a terminal and in a log."""

from __future__ import annotations

import io

from branchline.engine.progress import Progress
from branchline.server.start_progress import SECONDS_BETWEEN_LINES, StartProgress

GIB = 1 << 30
WEIGHTS = "loading weights"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Start:
    """A start whose clock stands still until told."""

    def __init__(self, stream: io.StringIO) -> None:
        self.lines: list[str] = []
        self.now = 100.0
        self.show = StartProgress(self.lines.append, stream, lambda: self.now)


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    start = Start(stream)
    start.show(Progress("loading m"))
    for done in range(8):
        start.show(Progress(WEIGHTS, done * GIB, 8 * GIB))
        start.now += SECONDS_BETWEEN_LINES / 2
    start.show(Progress("room for 7 tokens"))
    assert start.lines == [
        "loading m",
        f"{WEIGHTS}: 2.0 of 8.0 GiB",
        f"{WEIGHTS}: 4.0 of 8.0 GiB",
        f"{WEIGHTS}: 6.0 of 8.0 GiB",
        "room for 7 tokens",
    ]
    assert stream.getvalue() == ""


def test_what_is_quick_gets_no_line() -> None:
    start = Start(io.StringIO())
    for done in range(100):
        start.show(Progress(WEIGHTS, done, 100))
    assert start.lines == []


def test_a_terminal_gets_a_bar_that_goes() -> None:
    stream = Terminal()
    start = Start(stream)
    start.show(Progress(WEIGHTS, 0, 4 * GIB))
    start.show(Progress(WEIGHTS, 3 * GIB, 4 * GIB))
    start.show(Progress("room for 7 tokens"))
    assert start.lines == ["room for 7 tokens"]
    shown = stream.getvalue()
    assert f"{WEIGHTS}:   0%" in shown
    assert "4.00G" in shown
    assert shown.endswith("\r"), "the bar is wiped out"


def test_two_bars_follow_each_other() -> None:
    stream = Terminal()
    start = Start(stream)
    start.show(Progress("first", GIB, GIB))
    start.show(Progress("second", 0, GIB))
    start.show.close()
    start.show.close()
    assert "first" in stream.getvalue()
    assert "second:   0%" in stream.getvalue()
