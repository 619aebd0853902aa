"""Aliases at a server: the fleet's rule for them, and how a bad one is answered."""

from __future__ import annotations

from collections.abc import Sequence

from ..gateway.fleet.aliases import MAX_TARGETS, AliasTarget, pick_target, problem_of_targets
from .errors import bad_field

__all__ = ["MAX_TARGETS", "AliasTarget", "check_targets", "pick_target"]


def check_targets(targets: Sequence[AliasTarget]) -> None:
    """Raise ApiError 400 unless the targets differ and their percents sum to 100."""
    if (problem := problem_of_targets(targets)) is not None:
        raise bad_field("targets", problem)
