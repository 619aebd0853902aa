"""The recorded conversation trace as requests of tenants with adapters."""

from __future__ import annotations

import lzma
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

import msgspec

from ..cases.conversation import TRACED_BLOCK, TracedRequest

TRACE = Path(__file__).resolve().parents[1] / "data" / "conversation_trace.jsonl.xz"
STAMP_SECONDS = 3.0
"""Between two time stamps of the trace, over which its requests are spread at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """``speed`` divides the trace's times; ``zipf`` is the exponent of the tenants' shares."""

    num_requests: int = 12_031
    speed: float = 1.0
    num_tenants: int = 200
    zipf: float = 1.0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """``at`` in seconds; ``keys`` name the prompt's full blocks of 512 tokens.

    A key says what comes before its block and whose it is: tenants share nothing.
    """

    number: int
    at: float
    tenant: int
    keys: tuple[bytes, ...]
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def adapter(self) -> str:
        """Its tenant's adapter, as replicas know it."""
        return f"fleet/{self.tenant}"


def read_requests(traffic: Traffic) -> list[SimRequest]:
    """In the order of their times.

    The trace has no tenants: a prompt's second block (the first is one system prompt for all) is
    hashed to one, so that a conversation stays with its tenant.
    """
    lines = lzma.decompress(TRACE.read_bytes()).splitlines()[: traffic.num_requests]
    traced = [msgspec.json.decode(line, type=TracedRequest) for line in lines]
    generator = random.Random(traffic.seed)
    times = [one.timestamp / 1000 + generator.uniform(0, STAMP_SECONDS) for one in traced]
    shares = _zipf(traffic.num_tenants, traffic.zipf)
    ordered = sorted(zip(times, range(len(traced)), traced, strict=True))
    return [
        _request(number, at / traffic.speed, one, shares)
        for number, (at, _, one) in enumerate(ordered)
    ]


def _request(number: int, at: float, traced: TracedRequest, shares: Sequence[float]) -> SimRequest:
    tenant = _tenant(traced.hash_ids[min(1, len(traced.hash_ids) - 1)], shares)
    # A prompt's last token is computed in any case.
    num_full = (traced.input_length - 1) // TRACED_BLOCK
    keys = tuple(tenant.to_bytes(8) + one.to_bytes(8) for one in traced.hash_ids[:num_full])
    return SimRequest(
        number=number,
        at=at,
        tenant=tenant,
        keys=keys,
        num_prompt_tokens=traced.input_length,
        num_output_tokens=max(traced.output_length, 1),
    )


def _zipf(num_tenants: int, exponent: float) -> list[float]:
    """Shares added up, the last 1."""
    weights = [1 / rank**exponent for rank in range(1, num_tenants + 1)]
    return [part / sum(weights) for part in accumulate(weights)]


def _tenant(block: int, shares: Sequence[float]) -> int:
    drawn = int.from_bytes(blake2b(block.to_bytes(8), digest_size=8).digest()) / 2**64
    return min(bisect_left(shares, drawn), len(shares) - 1)


def infinite_hit_rate(requests: Sequence[SimRequest]) -> float:
    """Share of prompt tokens that one cache without end has."""
    held: set[bytes] = set()
    num_found = 0
    for request in requests:
        keys = request.keys
        num_found += next((i for i, key in enumerate(keys) if key not in held), len(keys))
        held.update(keys)
    return num_found * TRACED_BLOCK / sum(request.num_prompt_tokens for request in requests)


def num_distinct_blocks(requests: Sequence[SimRequest]) -> int:
    """What it takes to hold them all."""
    return len({key for request in requests for key in request.keys})
