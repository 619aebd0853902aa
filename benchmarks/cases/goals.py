"""A figure beside what it has to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """``value`` ought to be at least, or at most, ``bound``."""

    what: str
    value: float
    side: Literal["at least", "at most"]
    bound: float

    @property
    def is_met(self) -> bool:
        """Whether it is."""
        if self.side == "at least":
            return self.value >= self.bound
        return self.value <= self.bound

    def line(self) -> str:
        """For people."""
        verdict = "met" if self.is_met else "MISSED"
        return f"{self.what}: {self.value:.3f}   (goal: {self.side} {self.bound:g}, {verdict})"

    def figures(self) -> dict[str, object]:
        """For a results file."""
        return asdict(self) | {"is_met": self.is_met}
