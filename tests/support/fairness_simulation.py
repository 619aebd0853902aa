"""The real scheduler on a fake clock: tenants that send, and steps that last as long as modelled.

No model runs: each sampled token is a constant. A step takes a fixed time, and some more for each
row that decodes and each token that is prefilled; whatever arrives meanwhile finds it running. All
chance is seeded, so a run is the same each time.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from branchline.engine.blocks import BlockPool
from branchline.engine.plan import SampledToken, StepPlan
from branchline.engine.prefix_cache import PrefixCache
from branchline.engine.scheduler import Scheduler, SchedulerLimits
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.lora.slots import AdapterSlots
from branchline.lora.traits import AdapterTraits

TOKEN = 7
FOREVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Seconds of a step, and what the scheduler may use; roughly an 8B model on one large GPU."""

    step_seconds: float = 0.006
    decode_row_seconds: float = 0.00005
    prefill_token_seconds: float = 0.00004
    num_blocks: int = 4096
    block_size: int = 16
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 1024
    max_model_len: int = 16384
    policy: str = "fair"
    max_overtake_cost: int = 65536
    max_step_rank: int | None = None
    adapters: Mapping[str, AdapterTraits] = field(default_factory=dict)

    def seconds(self, plan: StepPlan) -> float:
        lengths = [chunk.num_scheduled_tokens for chunk in plan.chunks]
        num_decodes = sum(length == 1 for length in lengths)
        num_prefilled = sum(lengths) - num_decodes
        return (
            self.step_seconds
            + num_decodes * self.decode_row_seconds
            + num_prefilled * self.prefill_token_seconds
        )

    def scheduler(self, clock: Callable[[], float]) -> Scheduler:
        """The one place that knows how a scheduler is made."""
        slots = AdapterSlots(len(self.adapters))
        for digest in self.adapters:
            slots.add(digest)
        limits = SchedulerLimits(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_step_rank=self.max_step_rank,
            policy=self.policy,
            max_overtake_cost=self.max_overtake_cost,
        )
        cache = PrefixCache(BlockPool(self.num_blocks, self.block_size), "model")
        return Scheduler(cache, slots, limits, self.adapters, clock=clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Sends requests of random lengths from ``start`` to ``stop``.

    Either ``rate`` a second at random times, or ``concurrency`` at a time: the next one as soon
    as one has ended. ``count`` bounds how many in all.
    """

    tenant: str
    rate: float | None = None
    concurrency: int = 0
    weight: float = 1.0
    priority: int = 0
    prompt: tuple[int, int] = (100, 700)
    output: tuple[int, int] = (20, 100)
    adapter: str | None = None
    start: float = 0.0
    stop: float = FOREVER
    count: float = FOREVER


@dataclass(slots=True)
class Record:
    """One request: when it was sent, started and ended.

    ``waited_for`` is the cost that others were served between the first two, ``overtaken`` the part
    of it that went to later arrivals.
    """

    request_id: str
    tenant: str
    number: int
    arrived: float
    num_prompt_tokens: int
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    waited_for: float = 0.0
    overtaken: float = 0.0

    @property
    def ttft(self) -> float:
        """Seconds to the first token; for ever if there was none."""
        return FOREVER if self.first_token is None else self.first_token - self.arrived


class Simulation:
    """One run; ``tokens`` are (time, tenant, count) of prompts done and tokens given.

    ``cost`` is what was computed for each tenant, in the scheduler's units, and ``watched`` the
    requests of clients that send a limited number.
    """

    def __init__(self, machine: Machine, clients: list[Client], seed: int = 0) -> None:
        self.now = 0.0
        self.machine = machine
        self.scheduler = machine.scheduler(lambda: self.now)
        self.records: dict[str, Record] = {}
        self.tokens: list[tuple[float, str, int]] = []
        self.cost: Counter[str] = Counter()
        self.num_steps = 0
        self.watched: list[Record] = []
        self._clients = clients
        self._chances = [random.Random(f"{seed} {i}") for i in range(len(clients))]
        self._num_sent = [0] * len(clients)
        self._client_of: dict[str, int] = {}
        self._due: list[tuple[float, int]] = []
        for i, client in enumerate(clients):
            first = client.start + (self._gap(i) if client.rate else 0.0)
            self._due += [(first, i)] * (1 if client.rate else client.concurrency)
        heapq.heapify(self._due)

    def _gap(self, i: int) -> float:
        rate = self._clients[i].rate
        assert rate is not None
        return self._chances[i].expovariate(rate)

    def run(self, seconds: float, done: Callable[[Simulation], bool] = lambda _: False) -> None:
        """Go on until that time has come, or until something is so."""
        while self.now < seconds and not done(self):
            self._send_due()
            plan = self.scheduler.schedule()
            if not plan.chunks:
                assert not self.scheduler.has_requests, "requests wait and nothing is done"
                self.now = self._due[0][0] if self._due else seconds
                continue
            self._note_plan(plan)
            self.now += self.machine.seconds(plan)
            sampled = [SampledToken(TOKEN) for _ in plan.sampling_chunks()]
            self._note_outputs(plan, sampled)
            self.num_steps += 1
            if self.num_steps % 64 == 0:
                self.scheduler.check()

    def _send_due(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            at, i = heapq.heappop(self._due)
            client = self._clients[i]
            if at >= client.stop or self._num_sent[i] >= client.count:
                continue
            self._send(i, at)
            if client.rate:
                heapq.heappush(self._due, (at + self._gap(i), i))

    def _send(self, i: int, at: float) -> None:
        client, chance, number = self._clients[i], self._chances[i], len(self.records)
        self._num_sent[i] += 1
        num_prompt, num_output = chance.randint(*client.prompt), chance.randint(*client.output)
        request_id = f"{client.tenant}-{number}"
        self.records[request_id] = Record(request_id, client.tenant, number, at, num_prompt)
        self._client_of[request_id] = i
        if client.count < FOREVER:
            self.watched.append(self.records[request_id])
        params = SamplingParams(max_tokens=num_output, ignore_eos=True, temperature=0.0, seed=0)
        refused = self.scheduler.add(
            GenerationRequest(
                request_id=request_id,
                prompt_token_ids=[number + 10] * num_prompt,
                params=params,
                adapter=client.adapter,
                priority=client.priority,
                tenant=client.tenant,
                weight=client.weight,
            )
        )
        assert not refused

    def _note_plan(self, plan: StepPlan) -> None:
        """Starts, and what each waiting request is overtaken by in this step."""
        served: dict[str, int] = {}
        for chunk in plan.chunks:
            record = self.records[chunk.request.request_id]
            if record.started is None:
                record.started = self.now
            is_decode = chunk.num_scheduled_tokens == 1 and chunk.end > record.num_prompt_tokens
            served[record.request_id] = 2 if is_decode else chunk.num_scheduled_tokens
            self.cost[record.tenant] += served[record.request_id]
        for watched in self.watched:
            if watched.started is None:
                for request_id, cost in served.items():
                    watched.waited_for += cost
                    if self.records[request_id].number > watched.number:
                        watched.overtaken += cost

    def _note_outputs(self, plan: StepPlan, sampled: list[SampledToken]) -> None:
        for output in self.scheduler.apply(plan, sampled):
            record = self.records[output.request_id]
            assert output.error is None
            if record.first_token is None:
                record.first_token = self.now
                self.tokens.append((self.now, record.tenant, record.num_prompt_tokens))
            self.tokens.append((self.now, record.tenant, len(output.token_ids)))
            if output.finish_reason is not None:
                record.ended = self.now
                i = self._client_of[output.request_id]
                if self._clients[i].concurrency:
                    heapq.heappush(self._due, (self.now, i))

    # -- what came out ---------------------------------------------------------------------------

    def tokens_by_tenant(self, start: float, stop: float) -> dict[str, int]:
        """Prompt tokens done and tokens given in that time."""
        counts: dict[str, int] = defaultdict(int)
        for at, tenant, count in self.tokens:
            if start < at <= stop:
                counts[tenant] += count
        return counts

    def ttfts(self, tenant: str, start: float, stop: float) -> list[float]:
        """Seconds to the first token of what the tenant sent in that time, in rising order."""
        return sorted(
            record.ttft
            for record in self.records.values()
            if record.tenant == tenant and start < record.arrived <= stop
        )


def percentile(values: list[float], share: float) -> float:
    """Of sorted values, the least that ``share`` of them don't exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]
