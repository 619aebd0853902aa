"""A tenant's limits, as ``PUT /admin/tenants/{name}`` takes them."""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_LIMIT = 10**15
"""The most a limit may be: sums of few such numbers are still exact in Lua's doubles."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_LIMIT)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Each None where there is no limit; 0 lets nothing through.

    Minutes slide: no 60 seconds see more than the limit. Budgets count input and output tokens
    together and begin anew at midnight UTC.
    """

    requests_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    output_tokens_per_minute: Count | None = None
    max_in_flight: Count | None = None
    budget_tokens_per_day: Count | None = None

    @property
    def in_order(self) -> tuple[int | None, ...]:
        """The values as ``LIMIT_NAMES`` and the Lua scripts order them."""
        return (
            self.requests_per_minute,
            self.input_tokens_per_minute,
            self.output_tokens_per_minute,
            self.max_in_flight,
            self.budget_tokens_per_day,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is limited."""
        return self == NO_LIMITS


LIMIT_NAMES = Limits.__struct_fields__
"""The fields' names, in the order of ``Limits.in_order``."""

NO_LIMITS = Limits()
