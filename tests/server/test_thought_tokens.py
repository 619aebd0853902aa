"""Counting the tokens of thoughts."""

from __future__ import annotations

import pytest

from branchline.server.output.thought_tokens import ThinkingIds, ThoughtTally

BEGIN, END = 1, 2


@pytest.mark.parametrize(
    ("is_inside", "token_ids", "expected"),
    [
        (False, [BEGIN, 5, 6, END, 7, 8], 4),
        (False, [5, BEGIN, 6, END], 0),
        (True, [5, 6, END, 7, END], 3),
        (True, [5, 6], 2),
        (False, [], 0),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_tokens_up_to_the_end_mark_count(
    is_inside: bool, token_ids: list[int], expected: int, size: int
) -> None:
    tally = ThoughtTally(ThinkingIds(BEGIN, END, is_inside))
    for choice in range(2):
        for start in range(0, len(token_ids), size):
            tally.add(choice, token_ids[start : start + size])
    assert tally.count == 2 * expected


def test_without_marks_there_is_no_count() -> None:
    tally = ThoughtTally(None)
    tally.add(0, [1, 2])
    assert tally.count is None
