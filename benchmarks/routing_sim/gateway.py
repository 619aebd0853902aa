"""A simulated gateway: our own view, index and router, told what Redis would tell them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from branchline.gateway.fleet.records import (
    AdapterPlaces,
    GatewayReport,
    KeyEvents,
    ReplicaReport,
)
from branchline.gateway.routing.choice import Policy
from branchline.gateway.routing.router import Router
from branchline.gateway.types import RouteRequest, Target
from branchline.gateway.view.flight import Flight
from branchline.gateway.view.health import Health
from branchline.gateway.view.key_index import KeyIndex
from branchline.gateway.view.members import Members
from branchline.gateway.view.sightings import Heard, Sightings

from ..cases.conversation import TRACED_BLOCK
from .traffic import SimRequest


@dataclass(slots=True)
class Board:
    """What stands in Redis, with the times at which it was written."""

    replicas: dict[str, tuple[ReplicaReport, float]] = field(default_factory=dict)
    places: dict[str, AdapterPlaces] = field(default_factory=dict)
    gateways: dict[str, tuple[GatewayReport, float]] = field(default_factory=dict)
    events: dict[str, list[KeyEvents]] = field(default_factory=dict)


class PrefixIndex(Protocol):
    """Where a prompt's beginning is, or is thought to be."""

    def matched(self, keys: Sequence[bytes]) -> Mapping[str, int]:
        """Leading keys by replica."""
        ...

    def follow(self, board: Board) -> None:
        """Read what replicas told."""
        ...

    def sent(self, replica_id: str, keys: Sequence[bytes]) -> None:
        """A prompt went there."""
        ...


class ToldIndex:
    """Ours: what replicas told, and what is expected of a prompt just sent."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._index = KeyIndex(clock=clock)
        self._num_read: dict[str, int] = {}

    def matched(self, keys: Sequence[bytes]) -> Mapping[str, int]:
        """Leading keys by replica."""
        return self._index.matched(keys)

    def follow(self, board: Board) -> None:
        """Read what replicas told."""
        for replica_id, events in board.events.items():
            first = self._num_read.get(replica_id, 0)
            for one in events[first:]:
                assert self._index.apply(replica_id, one)
            self._num_read[replica_id] = len(events)

    def sent(self, replica_id: str, keys: Sequence[bytes]) -> None:
        """A prompt went there."""
        self._index.expect(replica_id, keys)


class PastIndex:
    """What gateways without events do: what was sent somewhere is there, the oldest forgotten."""

    def __init__(self, num_keys: int) -> None:
        self._num_keys = num_keys
        self._sent: dict[str, OrderedDict[bytes, None]] = {}

    def matched(self, keys: Sequence[bytes]) -> Mapping[str, int]:
        """Leading keys by replica."""
        return {
            replica_id: next((i for i, key in enumerate(keys) if key not in held), len(keys))
            for replica_id, held in self._sent.items()
        }

    def follow(self, board: Board) -> None:
        """Nothing is told."""

    def sent(self, replica_id: str, keys: Sequence[bytes]) -> None:
        """A prompt went there."""
        held = self._sent.setdefault(replica_id, OrderedDict())
        for key in reversed(keys):
            held[key] = None
            held.move_to_end(key)
        while len(held) > self._num_keys:
            held.popitem(last=False)


class SimGateway:
    """Polls, routes and keeps its flights as the real one does."""

    def __init__(
        self, gateway_id: str, policy: Policy, index: PrefixIndex, clock: Callable[[], float]
    ) -> None:
        self.gateway_id = gateway_id
        self._clock = clock
        self._index = index
        self._router = Router(policy, seed=1)
        self._members = Members(gateway_id, Health(seed=1), clock)
        self._beat = 0

    def poll(self, board: Board) -> None:
        """One look at what stands in Redis; says how it stands itself."""
        now = self._clock()
        self._beat += 1
        own = GatewayReport(
            gateway_id=self.gateway_id, url="", beat=self._beat, loads=self._members.loads()
        )
        board.gateways[self.gateway_id] = (own, now)
        known = self._members.known_places()
        self._members.take(
            Sightings(
                replicas={one: Heard(got, now - at) for one, (got, at) in board.replicas.items()},
                gateways={one: Heard(got, now - at) for one, (got, at) in board.gateways.items()},
                places={
                    one: places
                    for one, places in board.places.items()
                    if known.get(one) != (places.epoch, places.version)
                },
            )
        )
        self._index.follow(board)

    def send(self, request: SimRequest) -> Flight:
        """Where the request goes."""
        matched = self._index.matched(request.keys)
        decision = self._router.choose(
            RouteRequest(
                target=Target(
                    name=request.adapter,
                    wire_name=request.adapter,
                    digest=request.adapter,
                    in_registry=True,
                ),
                num_prompt_tokens=request.num_prompt_tokens,
                num_matched_tokens={one: num * TRACED_BLOCK for one, num in matched.items()},
                affinity=request.adapter.encode(),
            ),
            self._members.snapshot(),
        )
        assert decision is not None
        self._index.sent(decision.replica_id, request.keys)
        return self._members.begin(decision.replica_id, decision.num_uncached_tokens)
