"""A request as the fair queue sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from branchline.engine.request import RequestStatus


@dataclass(slots=True, eq=False)
class QueuedRequest:
    request_id: str
    arrival: int
    tenant: str = "a"
    weight: float = 1.0
    priority: int = 0
    num_uncomputed_tokens: int = 100
    status: RequestStatus = RequestStatus.WAITING
    ticket: Any = None

    def __repr__(self) -> str:
        return self.request_id
