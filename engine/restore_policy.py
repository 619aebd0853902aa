"""Whether copying KV back from host memory is quicker than computing it again."""

from __future__ import annotations

START_SECONDS = 0.002
"""What a copy costs before its first byte: a step or so of waiting until it is noticed."""
MIN_PREFILL_TOKENS = 64
_SMOOTHING = 0.2


class RestorePolicy:
    """Compares what was measured of late; until both speeds are known, copying is taken to pay."""

    def __init__(self, block_bytes: int, block_size: int) -> None:
        self._block_bytes = block_bytes
        self._block_size = block_size
        self._seconds_per_token: float | None = None

    def computed(self, num_tokens: int, seconds: float) -> None:
        """Note a step's speed; those of few tokens say little about prefill."""
        if num_tokens < MIN_PREFILL_TOKENS:
            return
        measured = seconds / num_tokens
        known = self._seconds_per_token
        self._seconds_per_token = (
            measured if known is None else known + _SMOOTHING * (measured - known)
        )

    def pays(self, num_blocks: int, bytes_per_second: float | None) -> bool:
        """Whether to copy ``num_blocks`` blocks rather than compute them."""
        if self._seconds_per_token is None or bytes_per_second is None:
            return True
        copying = START_SECONDS + num_blocks * self._block_bytes / bytes_per_second
        return copying < num_blocks * self._block_size * self._seconds_per_token
