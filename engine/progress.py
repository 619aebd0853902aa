"""What an engine says while it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One line for a person; of the ``total`` bytes that ``text`` names, ``done`` are there."""

    text: str
    done: int | None = None
    total: int | None = None


OnProgress = Callable[[Progress], None]


def tell_nobody(progress: Progress) -> None:
    """For who does not want to know."""
