"""How many of an answer's tokens are thoughts, told by the tokens of their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinkingIds:
    """The tokens around thoughts; ``is_inside``: the prompt has opened them."""

    begin: int
    end: int
    is_inside: bool


class ThoughtTally:
    """Counts over all choices, the marks among them; ``count`` is None where there are no marks."""

    def __init__(self, ids: ThinkingIds | None) -> None:
        self._ids = ids
        self._is_inside: dict[int, bool] = {}
        self.count: int | None = None if ids is None else 0

    def add(self, choice_index: int, token_ids: Sequence[int]) -> None:
        """Count the next tokens of a choice."""
        ids = self._ids
        if ids is None or self.count is None or not token_ids:
            return
        is_inside = self._is_inside.get(choice_index, ids.is_inside or token_ids[0] == ids.begin)
        if is_inside:
            is_over = ids.end in token_ids
            self.count += token_ids.index(ids.end) + 1 if is_over else len(token_ids)
            is_inside = not is_over
        self._is_inside[choice_index] = is_inside
