"""One client's request on its way: what is sent, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..estimates import PromptSize
from ..fleet.tracing import Span
from ..types import Caller, Decision, Target, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What does not change over all tries.

    ``headers`` are for replicas, the fleet's among them. ``prefix_keys`` may be empty: then
    nothing is known of what is cached. ``num_prompt_tokens`` and ``tokens_per_key`` are likely
    figures, not exact.
    """

    request_id: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    is_stream: bool
    caller: Caller
    target: Target
    size: PromptSize
    num_prompt_tokens: int
    prefix_keys: Sequence[bytes] = field(default=(), repr=False)
    tokens_per_key: float = 0.0
    affinity: bytes = b""


@dataclass(slots=True, kw_only=True)
class Trail:
    """What became of a request, for its log line, metrics and the ``x-branchline-route`` header.

    Times are ``time.perf_counter``; ``sent`` is of the first try, ``first_byte`` and ``answered``
    (the first byte to the client) of the answer. ``span`` is of the whole request, where traces are
    on.
    """

    request_id: str
    path: str
    arrived: float = field(default_factory=time.perf_counter)
    tenant: str | None = None
    tenant_is_known: bool = False
    model: str | None = None
    label: str | None = None
    status: int = 0
    decision: Decision | None = None
    num_retries: int = 0
    num_resumes: int = 0
    sent: float | None = None
    first_byte: float | None = None
    answered: float | None = None
    usage: Usage | None = None
    outcome: str = "ok"
    explain: bool = False
    span: Span | None = None

    def note_sent(self) -> None:
        """The first try goes out."""
        if self.sent is None:
            self.sent = time.perf_counter()

    def note_first_byte(self) -> None:
        """A replica answers."""
        self.first_byte = time.perf_counter()

    def note_answered(self) -> None:
        """The client gets its first byte."""
        if self.answered is None:
            self.answered = time.perf_counter()

    @property
    def added_seconds(self) -> float | None:
        """Time that only the gateway took: until the first try, and from its first byte on."""
        if self.num_retries or None in (self.sent, self.first_byte, self.answered):
            return None
        assert self.sent is not None
        assert self.first_byte is not None
        assert self.answered is not None
        return self.sent - self.arrived + self.answered - self.first_byte

    def route_header(self) -> str:
        """Where the request went and why; see ``fleet.headers.EXPLAIN_ROUTE``."""
        if self.decision is None:
            return "replica=none"
        decision = self.decision
        return (
            f"replica={decision.replica_id}; reason={decision.reason}; "
            f"cached={decision.num_matched_tokens}; uncached={decision.num_uncached_tokens}; "
            f"retries={self.num_retries}"
        )
