"""A scheduler under load without a model: what planning and taking in a step costs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool
from branchline.engine.limits import SchedulerLimits
from branchline.engine.plan import SampledToken
from branchline.engine.prefix_cache import PrefixCache
from branchline.engine.scheduler import Scheduler
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.lora.slots import AdapterSlots

BLOCK_SIZE = 16
VOCAB_SIZE = 32_000
TOKEN = SampledToken(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``num_running`` requests in the batch and ``num_waiting`` behind them, of many tenants.

    Each prompt is ``system_tokens`` that all of its tenant's share and ``prompt_tokens`` of its
    own; each answer has ``answer_tokens``, so that ``num_running / answer_tokens`` requests end a
    step and as many take their seats. None: nobody ends, every step is decodes alone.
    """

    num_running: int = 256
    num_waiting: int = 2000
    num_tenants: int = 1
    system_tokens: int = 256
    prompt_tokens: int = 64
    answer_tokens: int | None = 64
    num_blocks: int = 65_536
    budget: int = 2048


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one step's two halves."""

    schedule: float
    apply: float


class SteadyScheduler:
    """Keeps a scheduler at its load: who ends makes room for one who waits, and is followed."""

    def __init__(self, load: Load, clock: Callable[[], float] = time.perf_counter) -> None:
        self._load = load
        self._clock = clock
        self._random = random.Random(0)
        self._numbers = count()
        self._systems = [self._tokens(load.system_tokens) for _ in range(load.num_tenants)]
        limits = SchedulerLimits(
            max_model_len=1 << 20,
            max_num_seqs=load.num_running,
            max_num_batched_tokens=load.budget,
        )
        pool = BlockPool(load.num_blocks + NUM_RESERVED_BLOCKS, BLOCK_SIZE)
        self.scheduler = Scheduler(PrefixCache(pool, "model"), AdapterSlots(0), limits, {})
        self._fill()

    def _tokens(self, num_tokens: int) -> list[int]:
        return self._random.choices(range(VOCAB_SIZE), k=num_tokens)

    def _fill(self) -> None:
        """Until all seats are taken, by requests that are anywhere in their answers."""
        longest = self._load.answer_tokens
        for _ in range(self._load.num_running):
            self._add(longest and self._random.randint(1, longest))
        for _ in range(self._load.num_running):
            self.steps(1)
        # Those that the last step ended have left; the next one gives their seats away.
        assert len(self.scheduler.running) > 0.75 * self._load.num_running

    def _add(self, answer_tokens: int | None) -> None:
        number = next(self._numbers)
        tenant = number % self._load.num_tenants
        prompt = self._systems[tenant] + self._tokens(self._load.prompt_tokens)
        self.scheduler.add(
            GenerationRequest(
                request_id=f"request-{number}",
                prompt_token_ids=prompt,
                params=SamplingParams(max_tokens=answer_tokens, ignore_eos=True),
                tenant=f"tenant-{tenant}",
            )
        )

    def _refill(self) -> None:
        while self.scheduler.num_waiting < self._load.num_waiting:
            self._add(self._load.answer_tokens)

    def step(self) -> StepCost:
        """One step, and what came for it into the queue (which is not counted)."""
        start = self._clock()
        plan = self.scheduler.schedule()
        scheduled = self._clock()
        sampled = [TOKEN] * len(plan.sampling_chunks())
        taken = self._clock()
        self.scheduler.apply(plan, sampled)
        return StepCost(scheduled - start, self._clock() - taken)

    def steps(self, num_steps: int) -> list[StepCost]:
        """Steps at the load, the queue filled up after each."""
        costs = []
        for _ in range(num_steps):
            costs.append(self.step())
            self._refill()
        return costs
