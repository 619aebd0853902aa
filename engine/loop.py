"""The engine: schedule, build, execute, sample, apply, over and over."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence

import torch

from ..lora.bank import AdapterBank
from .batch import build_batch
from .errors import RequestError
from .plan import SampledToken, ScheduledChunk, StepPlan
from .runner import ModelRunner
from .sampler import Sampler, SamplingRow
from .scheduler import Scheduler
from .types import EngineInfo, EngineStats, GenerationRequest, TokenOutput

logger = logging.getLogger(__name__)


class EngineLoop:
    """One engine: requests in through ``add``, tokens out of ``step``."""

    def __init__(
        self,
        info: EngineInfo,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        bank: AdapterBank | None,
    ) -> None:
        self.info = info
        self._scheduler = scheduler
        self._runner = runner
        self._sampler = sampler
        self._bank = bank
        self._device = torch.device(info.device)
        self._meter = StepMeter()

    def add(self, request: GenerationRequest) -> None:
        """Queue a request; raises RequestError for one that could never run."""
        params = request.params
        if params.seed is None:
            raise RequestError("seed", "must be set by the time a request reaches the engine")
        if params.max_tokens is not None and params.max_tokens < 1:
            raise RequestError("max_tokens", "must be at least 1")
        self._check_token_ids("prompt", request.prompt_token_ids)
        self._check_token_ids("stop_token_ids", params.stop_token_ids)
        self._check_token_ids("logit_bias", params.logit_bias)
        self._scheduler.add(request)
        self._meter.num_prompt_tokens += len(request.prompt_token_ids)

    def _check_token_ids(self, field: str, ids: Collection[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.info.vocab_size):
            raise RequestError(field, f"token ids must be in [0, {self.info.vocab_size})")

    def abort(self, request_id: str) -> None:
        """End a request; its blocks are free when this returns."""
        self._scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """Whether a step would have anything to consider."""
        return self._scheduler.has_requests

    @property
    def num_steps(self) -> int:
        """Steps that computed something, so far."""
        return self._meter.num_steps

    def step(self) -> list[TokenOutput]:
        """One step; a step that fails ends its own requests, and the next one goes on."""
        plan = self._scheduler.schedule()
        if not plan.chunks:
            return []
        started = time.perf_counter()
        try:
            outputs = self._scheduler.apply(plan, self._execute(plan))
        except Exception as error:
            logger.exception("a step failed")
            if self._device.type == "cuda":
                # After a device-side fault every step fails: better that this raises and the
                # process ends, so that it can be started again.
                torch.cuda.synchronize(self._device)
            self._meter.num_failed_steps += 1
            outputs = self._scheduler.fail(plan, f"{type(error).__name__}: {error}")
        self._meter.record(time.perf_counter() - started, outputs)
        return outputs

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> list[SampledToken]:
        batch = build_batch(plan, self.info.block_size, self._bank, self._device)
        logits = self._runner.execute(batch, plan.zero_block_ids)
        chunks = plan.sampling_chunks()
        if not chunks:
            return []
        sampled = self._sampler.sample(logits, self._rows(chunks))
        return [
            SampledToken(token_id, sampled.logprobs[row], sampled.errors.get(row))
            for row, token_id in enumerate(sampled.token_ids)
        ]

    def _rows(self, chunks: Sequence[ScheduledChunk]) -> list[SamplingRow]:
        return [
            SamplingRow(
                params=chunk.request.params,
                position=chunk.request.num_tokens,
                choice_index=chunk.request.choice_index,
                prompt_token_ids=chunk.request.prompt_token_ids,
                output_token_ids=chunk.request.output_token_ids,
                eos_token_ids=self.info.eos_token_ids,
            )
            for chunk in chunks
        ]

    def stats(self) -> EngineStats:
        """Where the engine stands now."""
        scheduler, meter = self._scheduler, self._meter
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_blocks=scheduler.num_free_blocks,
            num_blocks=scheduler.num_usable_blocks,
            num_steps=meter.num_steps,
            num_failed_steps=meter.num_failed_steps,
            num_preemptions=scheduler.num_preemptions,
            num_prompt_tokens=meter.num_prompt_tokens,
            num_generation_tokens=meter.num_generation_tokens,
            last_step_seconds=meter.last_step_seconds,
            p99_step_seconds=meter.p99_step_seconds,
            running_adapters=sorted({r.adapter for r in scheduler.running if r.adapter}),
            waiting_adapters=sorted({r.adapter for r in scheduler.waiting if r.adapter}),
        )

    def check(self) -> None:
        """Assert the invariants of everything that is held; for tests and idle times."""
        self._scheduler.check()
        if self._bank is not None:
            self._bank.check()


class StepMeter:
    """Counts steps and tokens and remembers how long the last steps took."""

    def __init__(self, window: int = 1000) -> None:
        self.num_steps = 0
        self.num_failed_steps = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.last_step_seconds = 0.0
        self.p99_step_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=window)

    def record(self, seconds: float, outputs: Sequence[TokenOutput]) -> None:
        """Take in one step; the percentile is renewed every 64 steps."""
        self.num_steps += 1
        self.num_generation_tokens += sum(len(output.token_ids) for output in outputs)
        self.last_step_seconds = seconds
        self._recent.append(seconds)
        if self.num_steps % 64 == 1:
            ranked = sorted(self._recent)
            self.p99_step_seconds = ranked[int(0.99 * (len(ranked) - 1))]
