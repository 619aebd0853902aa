"""What happens to adapters between the tiers."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Literal

EventKind = Literal["loaded", "evicted", "failed"]


@dataclass(frozen=True, slots=True)
class TierEvent:
    """A version came to a tier or left it, or its load there failed; ``seconds`` of a load."""

    digest: str
    tier: Literal["host", "device"]
    kind: EventKind
    num_bytes: int
    seconds: float = 0.0


def error_of(copied: Future[int]) -> str | None:
    """Why a finished copy failed, None if it did not."""
    try:
        error = copied.exception()
    except CancelledError:
        return "the engine is stopping"
    return None if error is None else f"{type(error).__name__}: {error}"
