"""How long adapters take to the device here, from host memory and from disk."""

from __future__ import annotations

from ...engine.adapter_types import AdapterEvent

_SHARE = 0.2
"""What one load weighs in the mean."""


class LoadTimes:
    """Means in seconds, of which later loads count for more; 0 while none is known."""

    def __init__(self) -> None:
        self.host_seconds = 0.0
        self._read_seconds = 0.0

    @property
    def cold_seconds(self) -> float:
        """From disk: into host memory, and on to the device."""
        return self._read_seconds + self.host_seconds if self._read_seconds else 0.0

    def note(self, event: AdapterEvent) -> None:
        """Take in what the engine says of an adapter."""
        if event.kind != "loaded":
            return
        if event.tier == "device":
            self.host_seconds = _mean(self.host_seconds, event.seconds)
        else:
            self._read_seconds = _mean(self._read_seconds, event.seconds)


def _mean(before: float, seconds: float) -> float:
    return seconds if not before else before + _SHARE * (seconds - before)
