"""How long each member has been silent, in time during which it could have been heard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_COUNTED_SECONDS = 0.5
"""Of the time between two looks; what is longer, we were blind for (Redis frozen, ourselves)."""


class Leases:
    """Silences in seconds, by member.

    An age alone would expire everybody when Redis was frozen: it could not be told anything
    meanwhile. So silence is the age, but never more than the time that we watched it grow.
    """

    def __init__(self) -> None:
        self._silences: dict[str, float] = {}
        self._last_look: float | None = None

    def look(self, now: float, ages: Mapping[str, float], lag: float = 0.0) -> None:
        """Take in what one look found; who is not in ``ages`` was not heard of.

        ``lag`` are seconds since the last look in which this process stood still: a call that was
        under way then may have failed for it, so they count against the look twice.
        """
        elapsed = 0.0 if self._last_look is None else now - self._last_look
        counted = max(min(elapsed, MAX_COUNTED_SECONDS) - 2 * lag, 0.0)
        self._last_look = now
        grown = {member: silence + counted for member, silence in self._silences.items()}
        for member, age in ages.items():
            # A beat from the future: the clock stepped back. It says nothing until the next beat.
            grown[member] = min(age, grown.get(member, age)) if age >= 0 else grown.get(member, 0.0)
        self._silences = grown

    def silence(self, member: str) -> float:
        """Seconds; without end for one that was never heard of."""
        return self._silences.get(member, float("inf"))

    def forget(self, members: Iterable[str]) -> None:
        """They are no members any more."""
        for member in members:
            self._silences.pop(member, None)

    def members(self) -> list[str]:
        """All that were heard of and not forgotten."""
        return list(self._silences)
