"""The Lua scripts and what they take and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec

from ..fleet.redis_client import Client
from ..fleet.redis_names import RedisNames
from ..fleet.script import Script
from .limits import Limits
from .windows import Amounts, Reserve, Verdict

LEASE_SECONDS = 15.0
"""How long a flight counts that its gateway does not renew."""

Charge = tuple[int, int, int, int]
"""Second, and what to add there: requests, input and output tokens."""


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(f"{name}.lua").read_text()


_ADMIT = Script(_text("windows") + _text("admit"))
_SETTLE = Script(_text("windows") + _text("settle"))


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """One tenant's keys, all of one slot."""

    state: tuple[str, str, str]
    seen: str

    @classmethod
    def of(cls, names: RedisNames, tenant: str, gateway_id: str) -> TenantKeys:
        """As the scripts number them."""
        tag = names.tenant(tenant)
        return cls((f"{tag}:windows", f"{tag}:flights", f"{tag}:reserves"), f"{tag}:{gateway_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """A flight that goes on; ``if_unknown`` is what to add where it is not known."""

    flight: str
    reserve: Reserve
    if_unknown: Amounts

    @property
    def packed(self) -> tuple[str | int, ...]:
        """As the script reads it."""
        held = self.reserve
        tokens = (held.num_input_tokens, held.num_output_tokens)
        return (self.flight, held.second, *tokens, *self.if_unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A flight that is over and took ``final``; ``if_unknown`` as in ``Renewal``."""

    flight: str
    second: int
    final: Amounts
    if_unknown: Amounts

    @property
    def packed(self) -> tuple[str | int, ...]:
        """As the script reads it."""
        return (self.flight, self.second, *self.final, *self.if_unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a gateway tells of one tenant at once, under one sequence number."""

    sequence: int
    charges: tuple[Charge, ...] = ()
    renewals: tuple[Renewal, ...] = ()
    settlements: tuple[Settlement, ...] = ()

    @property
    def packed(self) -> bytes:
        """As the script reads it."""
        renewals = [renewal.packed for renewal in self.renewals]
        settlements = [settlement.packed for settlement in self.settlements]
        return msgspec.msgpack.encode((self.charges, renewals, settlements))


@dataclass(frozen=True, slots=True)
class Settled:
    """What Redis says to news; ``epoch`` names the state it has, drawn when it was made.

    ``used`` is in the order of ``LIMIT_NAMES``.
    """

    is_applied: bool
    now: int
    used: tuple[int, ...]
    epoch: str


async def admit(
    client: Client,
    keys: TenantKeys,
    flight: str,
    tokens: tuple[int, int],
    limits: Limits,
    *,
    now: int | None = None,
) -> tuple[Verdict, str]:
    """The verdict and the state's epoch; ``now`` (ms) only in tests, else Redis's own clock."""
    values = ["" if limit is None else limit for limit in limits.in_order]
    lease = round(LEASE_SECONDS * 1000)
    args = ("" if now is None else now, flight, lease, *tokens, *values)
    answer = await _ADMIT.run(client, keys.state, args)
    refused, wait, now, second, *used, reset, epoch = answer
    verdict = Verdict(
        refused_by=refused - 1 if refused else None,
        wait=wait,
        now=now,
        second=second,
        used=tuple(used),
        reset=reset,
    )
    return verdict, epoch.decode()


async def settle(
    client: Client,
    keys: TenantKeys,
    news: News,
    epochs: tuple[str, str],
    *,
    now: int | None = None,
) -> Settled:
    """Have news applied, once however often it comes.

    ``epochs``: the one that the sender knows (empty: none), and one for a state that isn't there.
    """
    given: str | int = "" if now is None else now
    lease = round(LEASE_SECONDS * 1000)
    args = (given, lease, news.sequence, *epochs, news.packed)
    answer: Sequence[Any] = await _SETTLE.run(client, (*keys.state, keys.seen), args)
    is_applied, now, *used, epoch = answer
    return Settled(bool(is_applied), now, tuple(used), epoch.decode())
