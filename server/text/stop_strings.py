"""Stop strings in a growing text, wherever token boundaries fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through up to a stop string, holding back what may be the start of one."""

    def __init__(self, stop: Sequence[str], include_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Take in ``text``; returns what may be shown and the stop string that ended it, if any.

        While not ``armed`` (fewer than ``min_tokens`` tokens) a stop string that completes
        in ``text`` is ordinary text.
        """
        if not self._stop:
            return text, None
        window = self._held + text
        if armed:
            found = self._find(window, len(self._held))
            if found is not None:
                start, stop = found
                self._held = ""
                return window[: start + len(stop) if self._include_stop else start], stop
        split = len(window) - self._num_held(window)
        self._held = window[split:]
        return window[:split], None

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _find(self, window: str, num_seen: int) -> tuple[int, str] | None:
        """The stop string that completes first after ``num_seen`` characters, the longest one."""
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = window.find(stop, max(0, num_seen - len(stop) + 1))
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])

    def _num_held(self, window: str) -> int:
        """Length of the longest end of ``window`` that begins a stop string."""
        longest = min(len(window), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            end = window[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stop):
                return length
        return 0
