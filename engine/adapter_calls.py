"""What admins have asked of adapters and is not done yet: loads, pins and removals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .adapter_types import AdapterReport, FreedAdapter, PinTier

LOAD_SECONDS = 60.0
"""A load that has found no room by then has failed."""


@dataclass(frozen=True, slots=True)
class AdapterAnswer:
    """The end of a call: a report, what was freed, or why not."""

    call_id: str
    report: AdapterReport | None = None
    freed: FreedAdapter | None = None
    error: str | None = None


@dataclass(slots=True)
class _Load:
    """Calls that wait for a version to come to a tier."""

    until: float
    call_ids: list[str] = field(default_factory=list)


class AdapterCalls:
    """Calls by what they wait for; each is answered once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loads: dict[tuple[str, PinTier], _Load] = {}
        self._removals: dict[str, list[str]] = {}
        self._answers: list[AdapterAnswer] = []

    @property
    def are_open(self) -> bool:
        """Whether anything is waited for, or to be answered."""
        return bool(self._loads or self._removals or self._answers)

    @property
    def removals(self) -> list[str]:
        """Versions that are to go."""
        return list(self._removals)

    def wanted(self, tier: PinTier) -> list[str]:
        """Versions that are to come to a tier, in the order they were asked for."""
        return [digest for digest, at in self._loads if at == tier]

    def load(self, call_id: str, digest: str, tier: PinTier) -> None:
        """Wait for a version to come."""
        load = self._loads.setdefault((digest, tier), _Load(self._clock() + LOAD_SECONDS))
        load.call_ids.append(call_id)

    def came(self, digest: str, tier: PinTier, report: AdapterReport) -> None:
        """A version is there."""
        load = self._loads.pop((digest, tier), None)
        for call_id in load.call_ids if load else ():
            self._answers.append(AdapterAnswer(call_id, report))

    def answer(self, call_id: str, report: AdapterReport) -> None:
        """A call is done at once."""
        self._answers.append(AdapterAnswer(call_id, report))

    def failed(self, digest: str, error: str) -> None:
        """A version can't come to any tier."""
        for key in [key for key in self._loads if key[0] == digest]:
            for call_id in self._loads.pop(key).call_ids:
                self._answers.append(AdapterAnswer(call_id, error=error))

    def expired(self) -> list[str]:
        """Versions that have not come in time, each once; their calls are to be failed."""
        now = self._clock()
        return list(dict.fromkeys(d for (d, _), load in self._loads.items() if load.until < now))

    def remove(self, call_id: str, digest: str) -> None:
        """Wait for a version's memory to be free."""
        self._removals.setdefault(digest, []).append(call_id)

    def removed(self, digest: str, freed: FreedAdapter) -> None:
        """A version is gone, or has been added again (then nothing was freed)."""
        for call_id in self._removals.pop(digest, ()):
            self._answers.append(AdapterAnswer(call_id, freed=freed))

    def answers(self) -> list[AdapterAnswer]:
        """What is done since this was asked last."""
        answers, self._answers = self._answers, []
        return answers
