"""Regular expressions from strangers: checked where they are read, bounded where they match.

Python's ``re`` can backtrack for ever and can not be stopped, so matching is done by the ``regex``
package, whose answers are the same but which gives up in time. What the two read differently is
refused; nothing that names modules needs it.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from .errors import AdapterError

if TYPE_CHECKING:
    import regex  # type: ignore[import-untyped]

MAX_PATTERN_CHARACTERS = 32_768
"""Of all expressions of a configuration that are more than names."""

MATCH_SECONDS = 5.0
"""Processor time for all matches of an adapter; those that people write take microseconds."""

MAX_EXPANSION = 200_000
"""A pattern's length times its counts and its repeated groups, which compiling it may copy."""

_NAME = re.compile(r"[\w.-]*", re.ASCII)
_REPEAT = re.compile(r"\)[*+?]|\{(\d*),?(\d*)\}")
_READ_DIFFERENTLY = re.compile(r"\[:|(?<!\\)\{(?!\d+(,\d*)?\}|,\d+\})")


def key_expression(key: str) -> str:
    """What PEFT makes of a key of a rank or alpha pattern."""
    return rf"(.*\.)?({key})$"


def saved_expression(name: str) -> str:
    """What PEFT matches with modules at or below one of ``modules_to_save``."""
    return rf"(^|.*\.){name}($|\..*)"


def layer_expression(pattern: str) -> str:
    """What PEFT makes of an entry of ``layers_pattern``."""
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


class PatternChecker:
    """Checks the patterns of one configuration as they are read; it never matches one."""

    def __init__(self) -> None:
        self._left = MAX_PATTERN_CHARACTERS

    def check(self, field: str, pattern: str, expression: str) -> None:
        """Refuse a pattern that does not compile in the whole ``expression`` it is used in."""
        if _NAME.fullmatch(pattern):
            return
        self._left -= len(pattern)
        if self._left < 0:
            raise AdapterError(field, f"patterns are over {MAX_PATTERN_CHARACTERS} characters")
        shown = pattern if len(pattern) <= 80 else pattern[:80] + "..."
        if _READ_DIFFERENTLY.search(pattern):
            raise AdapterError(field, f"{shown!r}: fuzzy matches and [:classes:] are not served")
        if _expansion(pattern) > MAX_EXPANSION:
            raise AdapterError(field, f"{shown!r} repeats too much within repeats")
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise AdapterError(field, f"{shown!r} is not a regular expression: {error}") from None


def _expansion(pattern: str) -> int:
    """At least the length of the pattern with all its repeats written out."""
    size = len(pattern)
    for repeat in _REPEAT.finditer(pattern):
        counts = [int(count) for count in repeat.groups() if count]
        size *= 1 + max(counts, default=1)
        if size > MAX_EXPANSION:
            break
    return size


class BoundedMatcher:
    """Matches expressions, all of them together in at most ``MATCH_SECONDS``."""

    def __init__(self, seconds: float = MATCH_SECONDS) -> None:
        self._seconds = self._left = seconds
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def match(self, field: str, expression: str, text: str) -> regex.Match[str] | None:
        """As ``re.match``; raises AdapterError that names the field when the time is over."""
        return self._bounded(field, expression, text, whole=False)

    def fullmatch(self, field: str, expression: str, text: str) -> bool:
        """Whether ``re.fullmatch`` finds one; raises as ``match`` does."""
        return self._bounded(field, expression, text, whole=True) is not None

    def _bounded(
        self, field: str, expression: str, text: str, whole: bool
    ) -> regex.Match[str] | None:
        import regex

        start = time.process_time()
        try:
            if self._left <= 0:
                raise TimeoutError
            if expression not in self._compiled:
                self._compiled[expression] = regex.compile(expression)
            pattern = self._compiled[expression]
            search = pattern.fullmatch if whole else pattern.match
            return search(text, timeout=self._left)
        except (regex.error, RecursionError) as error:
            raise AdapterError(field, f"is no regular expression for names: {error}") from None
        except TimeoutError:
            raise AdapterError(
                field, f"its patterns take more than {self._seconds:g} s to match module names"
            ) from None
        finally:
            self._left -= time.process_time() - start
