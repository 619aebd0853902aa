"""JSON as it comes: where a value ends, and whether it can still become one."""

from __future__ import annotations

import re
from typing import Literal

MAX_DEPTH = 128
MAX_SCALAR = 400

_SPACE = " \t\n\r"
_STRUCTURE = frozenset("{}[]:,")
_LITERALS = ("true", "false", "null")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_SO_FAR = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*([eE][+-]?[0-9]*)?|[eE][+-]?[0-9]*)?)?")

Expected = Literal["value", "value_or_end", "key", "key_or_end", "colon", "comma"]


class JsonScanner:
    """Follows one JSON value, character by character; cuts in the text make no difference.

    ``failed`` once the text can't become JSON any more, ``done`` behind the value's last bracket.
    A line break or other control character in a string, which JSON has no place for but models
    write, is taken as its escape.
    """

    def __init__(self) -> None:
        self.failed = False
        self.done = False
        self._open: list[str] = []
        self._expected: Expected = "value"
        self._in_string = False
        self._escape: str | None = None
        self._scalar = ""

    @property
    def depth(self) -> int:
        """How many objects and lists are open."""
        return len(self._open)

    @property
    def in_string(self) -> bool:
        """Whether a string is open."""
        return self._in_string

    def advance(self, text: str, start: int) -> tuple[int, str]:
        """Go on behind the next bracket, colon or comma, or to the end of ``text``.

        Returns where it stopped, which is in front of what made it fail, and what it took, as JSON.
        """
        taken: list[str] = []
        place = start
        while place < len(text):
            if self._in_string:
                length, piece = self._string(text, place)
                taken.append(piece)
                place += length
            else:
                piece = text[place]
                self._outside(piece)
                if not self.failed:
                    taken.append(piece)
                    place += 1
            if self.failed or (piece in _STRUCTURE and not self._in_string):
                break
        return place, "".join(taken)

    def _outside(self, char: str) -> None:
        if char in _SPACE:
            self._end_scalar()
        elif char in _STRUCTURE:
            self._end_scalar()
            self.failed = self.failed or not self._structure(char)
        elif char == '"':
            if self._scalar or self._expected in ("colon", "comma"):
                self.failed = True
            self._in_string = not self.failed
        else:
            self._scalar += char
            self.failed = self._expected not in ("value", "value_or_end") or not self._may_be()

    def _string(self, text: str, place: int) -> tuple[int, str]:
        """How many characters of a string come next, and what they are in JSON."""
        char = text[place]
        if self._escape is not None:
            self._escape += char
            self._check_escape()
        elif char == "\\":
            self._escape = ""
        elif char == '"':
            self._in_string = False
            self._end_value(is_key=self._expected in ("key", "key_or_end"))
        elif char < " ":
            return 1, f"\\u{ord(char):04x}" if char not in "\n\r\t" else repr(char)[1:-1]
        else:
            plain = _PLAIN.match(text, place)
            assert plain is not None
            return len(plain[0]), plain[0]
        return (0, "") if self.failed else (1, char)

    def _check_escape(self) -> None:
        escape = self._escape or ""
        if escape[0] == "u":
            self.failed = not all(char in "0123456789abcdefABCDEF" for char in escape[1:])
            if len(escape) < 5:
                return
        elif escape not in '"\\/bfnrt':
            self.failed = True
        self._escape = None

    def _structure(self, char: str) -> bool:
        """Whether the character may stand here; takes it in."""
        if char in "{[":
            fits = self._expected in ("value", "value_or_end") and self.depth < MAX_DEPTH
            self._open.append(char)
            self._expected = "key_or_end" if char == "{" else "value_or_end"
            return fits
        last = self._open[-1] if self._open else ""
        if char in "}]":
            ends = ("comma", "key_or_end") if char == "}" else ("comma", "value_or_end")
            fits = last + char in ("{}", "[]") and self._expected in ends
            if fits:
                self._open.pop()
                self._end_value()
            return fits
        if char == ":":
            fits = self._expected == "colon"
            self._expected = "value"
            return fits
        fits = self._expected == "comma"
        self._expected = "key" if last == "{" else "value"
        return fits

    def _end_scalar(self) -> None:
        if not self._scalar:
            return
        whole = self._scalar in _LITERALS or _NUMBER.fullmatch(self._scalar)
        self.failed = not whole
        self._scalar = ""
        self._end_value()

    def _end_value(self, is_key: bool = False) -> None:
        self._expected = "colon" if is_key else "comma"
        self.done = not self._open

    def _may_be(self) -> bool:
        scalar = self._scalar
        if any(literal.startswith(scalar) for literal in _LITERALS):
            return True
        return len(scalar) <= MAX_SCALAR and _NUMBER_SO_FAR.fullmatch(scalar) is not None
