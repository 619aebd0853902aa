"""The values that travel between the gateway's parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from .fleet.records import AdapterPlace, ReplicaLoad, ReplicaReport

Outcome = Literal["ok", "refused", "client_left", "overloaded", "failed", "unreachable", "stalled"]
"""How a replica took a request; only the last three speak against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request, and on what terms.

    ``models`` maps the names that this tenant may use to the fleet's names; None: every name as
    it is. Tenants of one ``cache_group`` share cached prefixes; without one a tenant shares with
    nobody.
    """

    tenant: str
    weight: float = 1.0
    priority: int = 0
    cache_group: str | None = None
    models: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a model name stands for now.

    ``name`` is the client's own word, ``label`` names it in metrics and usage. ``wire_name`` is
    the name that replicas know it by, ``digest`` the adapter version's, None for the base model.
    ``uses_base_prefix``: an activated LoRA, whose prompts begin in the base's KV.
    ``in_registry``: the fleet's registry can bring it to any replica; else only those have it
    that say so.
    """

    name: str
    wire_name: str
    digest: str | None = None
    uses_base_prefix: bool = False
    in_registry: bool = False
    label: str = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Upper bounds that limits reserve, in tokens; ``num_output_tokens`` over all choices."""

    num_input_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request really took, from the replica's counts."""

    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One replica as a gateway sees it at one moment.

    ``warmth`` goes from 0 to 1 after a return (slow start). ``load`` is what all gateways have on
    the way there. ``out_reason`` says why it gets nothing; None: it is up.
    """

    report: ReplicaReport
    places: Mapping[str, AdapterPlace] = field(default_factory=lambda: MappingProxyType({}))
    load: ReplicaLoad = field(default_factory=ReplicaLoad)
    warmth: float = 1.0
    out_reason: str | None = None

    @property
    def replica_id(self) -> str:
        """Its id."""
        return self.report.replica_id

    @property
    def is_up(self) -> bool:
        """Whether it may get requests."""
        return self.out_reason is None


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """All known replicas at one moment; routing is a pure function of it."""

    replicas: tuple[ReplicaView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What routing knows of a request.

    ``num_matched_tokens`` is by replica id: about how many of the prompt's tokens are cached there.
    ``affinity`` is a hash of tenant and adapter, for policies that know no more. ``excluded`` are
    replicas that this request has failed on.
    """

    target: Target
    num_prompt_tokens: int
    num_matched_tokens: Mapping[str, int]
    affinity: bytes = b""
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One replica's costs in seconds, so that a decision can be explained."""

    replica_id: str
    cost: float
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    adapter_seconds: float = 0.0
    num_matched_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a request goes and why; ``reason`` is one of few words, a metric's label."""

    replica_id: str
    url: str
    reason: str
    num_matched_tokens: int
    num_uncached_tokens: int
    candidates: tuple[Candidate, ...] = ()
