"""Counts by name, for tables that must not grow with every name there ever was."""

from __future__ import annotations

from collections import Counter


class Tally(Counter[str]):
    """A counter that forgets a name at zero."""

    def add(self, name: str, number: int = 1) -> None:
        """Count ``number`` more of a name, or fewer."""
        self[name] += number
        if not self[name]:
            del self[name]
