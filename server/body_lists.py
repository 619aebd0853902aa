"""Lists and tables in request bodies, of which a client can't send so many bad entries that telling
them all holds up others' streams."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

MAX_ITEMS = 1 << 14
MAX_BIAS = 1 << 13
MAX_TOKENS = 1 << 20
"""Far over ``Limits``, which say more of a list that is only somewhat too long."""

ItemT = TypeVar("ItemT")

Items = Annotated[list[ItemT], Field(fail_fast=True, max_length=MAX_ITEMS)]
TokenIds = Annotated[list[int], Field(fail_fast=True, max_length=MAX_TOKENS)]


def entries_up_to(most: int) -> BeforeValidator:
    """Counts a table's entries before they are read: pydantic counts after that, and tells all."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError(
                "too_long",
                "has {count} entries, the most is {most}",
                {"count": len(value), "most": most},
            )
        return value

    return BeforeValidator(check)
