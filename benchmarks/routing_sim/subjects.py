"""The gateways that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from branchline.gateway.routing.choice import Policy
from branchline.gateway.routing.cost import CostPolicy
from branchline.gateway.routing.router import POLICIES

from .gateway import PastIndex, PrefixIndex, ToldIndex
from .machine import Machine
from .rivals import LlmdScores, SglangCacheAware
from .simulation import Setup

OURS = "cost"
OURS_THREE = "cost, three gateways"
OURS_BLIND = "cost, adapter-blind"
ROUND_ROBIN = "round-robin"


def setups(machine: Machine) -> Mapping[str, Setup]:
    """By the name of their row. ``told`` indices follow replicas' events, the rest guess."""

    def past(clock: Callable[[], float]) -> PrefixIndex:
        # As large as what a replica holds: mis-sized ones only do worse.
        return PastIndex(machine.num_blocks)

    def row(policy: Callable[[], Policy], index: Callable[..., PrefixIndex]) -> Setup:
        return Setup(policy=policy, index=index, machine=machine)

    ours = row(CostPolicy, ToldIndex)
    return {
        **{name: row(policy, ToldIndex) for name, policy in POLICIES.items()},
        OURS_THREE: replace(ours, num_gateways=3),
        OURS_BLIND: row(lambda: CostPolicy(adapter_weight=0.0), ToldIndex),
        "SGLang cache-aware": row(SglangCacheAware, past),
        "llm-d 3/2/2": row(LlmdScores, past),
        "llm-d 3/2/2, told": row(LlmdScores, ToldIndex),
    }
