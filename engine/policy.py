"""Who goes first: the order in which waiting requests are considered, and who gives way."""

from __future__ import annotations

from collections.abc import Iterable

from .request import Request


def scheduling_order(request: Request) -> tuple[int, int]:
    """Lower priority numbers first, then first come, first served."""
    return (request.priority, request.arrival)


def choose_victim(running: Iterable[Request]) -> Request:
    """The running request to preempt when blocks run out: the last in that order."""
    return max(running, key=scheduling_order)
