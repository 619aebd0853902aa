"""Aliases: a name for an adapter, for one of its versions, or for a split between several."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TARGETS = 16
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """``percent`` of an alias's keys go to this adapter; ``version`` None is its current one."""

    adapter: str
    version: int | None = None
    percent: float = 100.0


def problem_of_targets(targets: Sequence[AliasTarget]) -> str | None:
    """What is wrong with them: they must differ, and their percents sum to 100."""
    if not 1 <= len(targets) <= MAX_TARGETS:
        return f"must be 1 to {MAX_TARGETS} of them, not {len(targets)}"
    if len({(target.adapter, target.version) for target in targets}) < len(targets):
        return "name one version of one adapter twice"
    percents = [target.percent for target in targets]
    if not all(0 <= percent <= 100 for percent in percents):
        return "each percent must be between 0 and 100"
    if abs(math.fsum(percents) - 100) > _TOLERANCE:
        return f"their percents sum to {math.fsum(percents):g}, not to 100"
    return None


def pick_target(alias: str, targets: Sequence[AliasTarget], key: str) -> AliasTarget:
    """The target that ``key`` falls to: always the same while the split stands.

    A key is a point in [0, 100), the targets lie there one after the other. Their order is that
    of their names, not of their shares, so that moving a share from one of two to the other moves
    only the keys of that share.
    """
    ordered = sorted(targets, key=lambda target: (target.adapter, target.version or 0))
    point = _point(alias, key)
    end = 0.0
    for target in ordered:
        end += target.percent
        if point < end:
            return target
    return max(ordered, key=lambda target: target.percent)  # the sum of percents is 99.999...


def _point(alias: str, key: str) -> float:
    """Where a key lies in [0, 100): even over keys, and other for each alias."""
    text = f"{len(alias)} {alias} {key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:6]) / (1 << 48) * 100
