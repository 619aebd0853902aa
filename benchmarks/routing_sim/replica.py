"""One simulated replica: a queue, steps that mix prompt chunks with decodes, and its caches."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from branchline.gateway.fleet.records import (
    AdapterPlace,
    AdapterPlaces,
    KeyEvents,
    ReplicaReport,
)

from ..cases.conversation import TRACED_BLOCK
from .caches import AdapterCache, BlockCache, Tier
from .machine import Machine
from .traffic import SimRequest

EPOCH = "1"


@dataclass(slots=True, kw_only=True)
class Served:
    """One request at a replica; ``num_computed`` counts prompt tokens, cached ones included."""

    request: SimRequest
    tier: Tier
    ready_at: float
    num_computed: int = 0
    num_cached: int = 0
    num_committed: int = 0
    num_private: int = 0
    first_token_at: float = 0.0


@dataclass(slots=True)
class StepPlan:
    """What runs now, and how many tokens of which prompts."""

    ends_at: float
    chunks: list[tuple[Served, int]] = field(default_factory=list)


class SimReplica:
    """Serves first come, first served; a request whose adapter is on its way is passed."""

    def __init__(self, replica_id: str, machine: Machine) -> None:
        self.replica_id = replica_id
        self.blocks = BlockCache(machine.num_blocks)
        self.adapters = AdapterCache(machine.num_device_adapters, machine.num_host_adapters)
        self.step: StepPlan | None = None
        self.num_computed_tokens = 0
        self.finished: list[Served] = []
        self._machine = machine
        self._waiting: deque[Served] = deque()
        self._prefilling: list[Served] = []
        self._decoding: list[tuple[int, int, Served]] = []
        self._adapter_ready_at: dict[str, float] = {}
        self._num_steps = 0
        self._num_held = 0
        self._num_queued = 0
        self._beat = 0
        self._sequence = 0

    def arrive(self, now: float, request: SimRequest) -> Served:
        """A request is here."""
        tier = self.adapters.use(request.adapter)
        machine = self._machine
        seconds = {"device": 0.0, "host": machine.host_seconds, "disk": machine.cold_seconds}[tier]
        ready_at = max(now + seconds, self._adapter_ready_at.get(request.adapter, 0.0))
        self._adapter_ready_at[request.adapter] = ready_at
        served = Served(request=request, tier=tier, ready_at=ready_at)
        served.num_cached = self.blocks.match(request.keys) * TRACED_BLOCK
        self._num_queued += request.num_prompt_tokens - served.num_cached
        self._waiting.append(served)
        return served

    def next_step(self, now: float) -> float | None:
        """Begin a step and say when it ends; None if there is nothing to do yet."""
        self._admit(now)
        budget = max(self._machine.token_budget - len(self._decoding), 0)
        chunks = []
        for served in self._prefilling:
            num_tokens = min(budget, served.request.num_prompt_tokens - served.num_computed)
            if num_tokens:
                chunks.append((served, num_tokens))
                budget -= num_tokens
        if not chunks and not self._decoding:
            return None
        num_tokens = len(self._decoding) + sum(chunk for _, chunk in chunks)
        seconds = self._machine.step_seconds(num_tokens, self._num_held)
        self.step = StepPlan(now + seconds, chunks)
        return self.step.ends_at

    def end_step(self) -> list[Served]:
        """Take in what the step computed; who got a first token."""
        step, self.step = self.step, None
        assert step is not None
        self._num_steps += 1
        self._num_held += len(self._decoding)
        while self._decoding and self._decoding[0][0] <= self._num_steps:
            self._finish(heapq.heappop(self._decoding)[2])
        return [served for served, chunk in step.chunks if self._compute(served, chunk, step)]

    def wakes_at(self) -> float | None:
        """When the first adapter that is waited for is there."""
        return min((served.ready_at for served in self._waiting), default=None)

    def report(self) -> ReplicaReport:
        """As a replica tells it."""
        self._beat += 1
        machine, blocks = self._machine, self.blocks
        return ReplicaReport(
            replica_id=self.replica_id,
            url=f"http://{self.replica_id}",
            epoch=EPOCH,
            beat=self._beat,
            state="ready",
            fingerprint="f",
            models=["m"],
            max_model_len=1 << 20,
            progress=self._num_steps,
            num_running=len(self._prefilling) + len(self._decoding),
            num_waiting=len(self._waiting),
            max_num_seqs=machine.max_num_seqs,
            num_queued_prefill_tokens=self._num_queued,
            prefill_tokens_per_second=machine.prefill_rate,
            num_free_blocks=blocks.num_free + blocks.num_idle,
            num_blocks=blocks.num_blocks,
            block_size=TRACED_BLOCK,
            adapters_version=self.adapters.version,
            adapter_host_seconds=machine.host_seconds,
            adapter_cold_seconds=machine.cold_seconds,
            key_sequence=self._sequence,
        )

    def places(self) -> AdapterPlaces:
        """Its adapters by tier."""
        places = [
            AdapterPlace(name=name, digest=name, tier=tier)
            for name, tier in self.adapters.tiers().items()
        ]
        return AdapterPlaces(epoch=EPOCH, version=self.adapters.version, places=places)

    def key_events(self) -> KeyEvents | None:
        """What came and went since the last call."""
        blocks = self.blocks
        if not blocks.stored and not blocks.removed:
            return None
        self._sequence += 1
        events = KeyEvents(
            epoch=EPOCH,
            sequence=self._sequence,
            removed=b"".join(blocks.removed),
            stored=b"".join(blocks.stored),
        )
        blocks.stored, blocks.removed = {}, {}
        return events

    def _admit(self, now: float) -> None:
        room = self._machine.max_num_seqs - len(self._prefilling) - len(self._decoding)
        passed: list[Served] = []
        while self._waiting and room > 0:
            served = self._waiting.popleft()
            if served.ready_at > now:
                passed.append(served)
            elif self._seat(served):
                room -= 1
            else:
                passed.append(served)
                break
        self._waiting.extendleft(reversed(passed))

    def _seat(self, served: Served) -> bool:
        """With blocks for all its tokens, or not at all."""
        request = served.request
        num_found = self.blocks.match(request.keys)
        num_tokens = request.num_prompt_tokens + request.num_output_tokens
        num_private = -(-num_tokens // TRACED_BLOCK) - num_found
        if not self.blocks.take(request.keys[:num_found], num_private):
            return False
        self._num_queued += served.num_cached - num_found * TRACED_BLOCK
        served.num_cached = served.num_computed = num_found * TRACED_BLOCK
        served.num_committed, served.num_private = num_found, num_private
        self._prefilling.append(served)
        return True

    def _compute(self, served: Served, num_tokens: int, step: StepPlan) -> bool:
        request = served.request
        served.num_computed += num_tokens
        self._num_queued -= num_tokens
        self.num_computed_tokens += num_tokens
        num_full = min(served.num_computed // TRACED_BLOCK, len(request.keys))
        for key in request.keys[served.num_committed : num_full]:
            self.blocks.commit(key)
            served.num_private -= 1
        served.num_committed = num_full
        if served.num_computed < request.num_prompt_tokens:
            return False
        served.first_token_at = step.ends_at
        self._prefilling.remove(served)
        self._num_held += request.num_prompt_tokens
        if request.num_output_tokens == 1:
            self._finish(served)
        else:
            last = self._num_steps + request.num_output_tokens - 1
            heapq.heappush(self._decoding, (last, request.number, served))
        return True

    def _finish(self, served: Served) -> None:
        request = served.request
        self._num_held -= request.num_prompt_tokens + request.num_output_tokens - 1
        self.blocks.release(request.keys, served.num_private)
        self.finished.append(served)
