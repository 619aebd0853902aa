from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from branchline.server.text.stop_strings import StopScanner

# Few characters, so that stop strings overlap themselves and each other; one needs four bytes.
TEXT = st.text("ab😀", max_size=30)
STOPS = st.lists(st.text("ab😀", min_size=1, max_size=4), min_size=1, max_size=4)


def scan(pieces: list[str], stop: list[str], include: bool = False) -> tuple[str, str | None]:
    scanner = StopScanner(stop, include)
    shown = ""
    for piece in pieces:
        text, found = scanner.push(piece)
        shown += text
        if found is not None:
            return shown, found
    return shown + scanner.flush(), None


def first_to_complete(text: str, stop: list[str]) -> tuple[int, str] | None:
    """The same by definition: the shortest beginning of the text that ends in a stop string."""
    for end in range(len(text) + 1):
        ending = [one for one in stop if text[:end].endswith(one)]
        if ending:
            longest = max(ending, key=len)
            return end - len(longest), longest
    return None


@given(text=TEXT, stop=STOPS, cuts=st.lists(st.integers(0, 30)), include=st.booleans())
def test_any_cut_of_a_text_stops_at_the_same_place(
    text: str, stop: list[str], cuts: list[int], include: bool
) -> None:
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    expected = first_to_complete(text, stop)
    if expected is None:
        assert scan(pieces, stop, include) == (text, None)
    else:
        start, found = expected
        end = start + len(found) if include else start
        assert scan(pieces, stop, include) == (text[:end], found)


@given(text=TEXT, stop=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stop: list[str]) -> None:
    scanner = StopScanner(stop)
    shown = ""
    for length, character in enumerate(text, 1):
        piece, found = scanner.push(character)
        shown += piece
        if found is not None:
            return
        held = text[len(shown) : length]
        assert not held or any(one.startswith(held) and one != held for one in stop)


def test_text_before_min_tokens_does_not_stop() -> None:
    scanner = StopScanner(["ab"])
    assert scanner.push("xab", armed=False) == ("xab", None)
    assert scanner.push("ya", armed=False) == ("y", None)
    assert scanner.push("b") == ("", "ab"), "it completes once armed, so it counts"


def test_what_completed_while_unarmed_stays_text() -> None:
    scanner = StopScanner(["aa", "aab"])
    assert scanner.push("aa", armed=False) == ("", None)
    assert scanner.push("c") == ("aac", None)
