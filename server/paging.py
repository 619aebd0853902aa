"""Pages of long lists of names, in the order of the names: what is removed does not shift them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query

Limit = Annotated[int | None, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=4096)]


@dataclass(frozen=True, slots=True)
class Page:
    """Some names; ``has_more`` after the last of them."""

    names: Sequence[str]
    has_more: bool

    @property
    def first(self) -> str | None:
        """The first name."""
        return self.names[0] if self.names else None

    @property
    def last(self) -> str | None:
        """The last name, which is the next page's ``after``."""
        return self.names[-1] if self.names else None


def page_of(
    names: Sequence[str], limit: int | None, after: str | None, num_leading: int = 0
) -> Page:
    """At most ``limit`` names, all behind ``after``, which may be gone by now.

    All but the first ``num_leading`` are sorted.
    """
    start = 0
    if after in names[:num_leading]:
        start = names.index(after) + 1
    elif after is not None:
        start = bisect_right(names, after, num_leading)
    end = len(names) if limit is None else min(start + limit, len(names))
    return Page(names[start:end], end < len(names))
