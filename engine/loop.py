"""The engine: schedule, build, execute, sample, apply, over and over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapters import EngineAdapters, Users
from .batch import send_batch
from .cache_report import report_cache
from .cache_types import CacheEvent, CacheReport, PinReport, PrefixTarget
from .errors import RequestError
from .grammar.grammars import Grammars, overload, refusal
from .pins import Pins
from .pipeline import FinishedStep, StepPipeline
from .plan import ScheduledChunk, StepPlan
from .prompt_reader import PendingPrompts, read_prompts
from .prompt_rows import prompt_rows
from .runner import ModelRunner
from .sampler import PendingSample, Sampler, SamplingRow
from .scheduler import Scheduler
from .step_graphs import StepGraphs
from .step_launch import LaunchedStep
from .step_layout import lay_out
from .step_meter import StepMeter
from .types import EngineInfo, EngineStats, GenerationRequest, TokenOutput

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of; without ``graphs`` every step runs eagerly."""

    scheduler: Scheduler
    runner: ModelRunner
    sampler: Sampler
    adapters: EngineAdapters
    pins: Pins
    graphs: StepGraphs | None = None


class EngineLoop:
    """One engine: requests in through ``add``, tokens out of ``step``.

    ``depth`` is the number of steps that may be under way when the next one is planned.
    """

    def __init__(self, info: EngineInfo, parts: EngineParts, depth: int = 0) -> None:
        self.info = info
        self.pins = parts.pins
        self.adapters = parts.adapters
        self._scheduler = parts.scheduler
        self._runner = parts.runner
        self._graphs = parts.graphs
        self._sampler = parts.sampler
        self._device = torch.device(info.device)
        self._runs_ahead = depth > 0
        self._pipeline = StepPipeline(parts.scheduler, self._launch, depth)
        self._previous_token_ids: Tensor | None = None
        self._previous: PendingSample | None = None
        self._grammars = Grammars(info.eos_token_ids)
        self._meter = StepMeter()

    def add(self, request: GenerationRequest) -> list[TokenOutput]:
        """Queue a request; returns those refused because the queue is full, itself or another.

        Raises RequestError for one that could never run.
        """
        params = request.params
        if params.seed is None:
            raise RequestError("seed", "must be set by the time a request reaches the engine")
        if params.max_tokens is not None and params.max_tokens < 0:
            raise RequestError("max_tokens", "must be at least 0")
        adapter = request.adapter
        self._check_prompt_output(request)
        self._check_token_ids("prompt", request.prompt_token_ids, adapter)
        self._check_token_ids("output_token_ids", request.output_token_ids, adapter)
        self._check_token_ids("stop_token_ids", params.stop_token_ids, adapter)
        self._check_token_ids("logit_bias", params.logit_bias, adapter)
        self._check_token_ids("allowed_token_ids", params.allowed_token_ids, adapter)
        for word in params.bad_word_ids:
            self._check_token_ids("bad_words", word, adapter)
        if params.grammar is not None:
            self._scheduler.intake.check(request)
            if self._grammars.is_full_for(request):
                return [overload(request.request_id)]
            if not self._grammars.open(request):
                return []  # it comes to the scheduler with its grammar
        return self._enter(request)

    def _enter(self, request: GenerationRequest) -> list[TokenOutput]:
        """Have a request scheduled; as ``add``."""
        try:
            refused = self._scheduler.add(request)
        except RequestError:
            self._grammars.close(request.request_id)
            raise
        self._grammars.note(refused)
        self._meter.num_prompt_tokens += len(request.prompt_token_ids)
        return refused

    def _take_grammars(self) -> list[TokenOutput]:
        """Have requests scheduled whose grammar is there; returns ends, as of those without."""
        ready, outputs = self._grammars.advance()
        for request in ready:
            try:
                outputs += self._enter(request)
            except RequestError as error:  # its adapter has gone meanwhile
                outputs.append(refusal(request.request_id, str(error)))
        return outputs

    def _check_prompt_output(self, request: GenerationRequest) -> None:
        num_top, vocab_size = request.params.prompt_logprobs, self.info.vocab_size
        if num_top is None:
            return
        if not 0 <= num_top <= vocab_size:
            raise RequestError("prompt_logprobs", f"must be in [0, {vocab_size}]")
        if request.pooling is not None:
            raise RequestError("prompt_logprobs", "can't be had with pooling")

    def _check_token_ids(self, field: str, ids: Collection[int], adapter: str | None) -> None:
        traits = None if adapter is None else self.adapters.traits.get(adapter)
        vocab_size = (traits.vocab_size if traits else None) or self.info.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            raise RequestError(field, f"token ids must be in [0, {vocab_size})")

    @property
    def adapter_users(self) -> Users:
        """Who knows the live requests of an adapter."""
        return self._scheduler

    def abort(self, request_id: str) -> None:
        """End a request; its blocks are free once no step under way reads them."""
        self._grammars.close(request_id)
        self._scheduler.abort(request_id)

    def hold(self, request_id: str) -> None:
        """Compute nothing more of a request, whose reader is behind, until ``go_on``."""
        self._scheduler.hold(request_id)

    def go_on(self, request_id: str) -> None:
        """Go on with a request that is held; it gives what it would have given."""
        self._scheduler.go_on(request_id)

    @property
    def has_work(self) -> bool:
        """Whether a step would have anything to consider."""
        return self._pipeline.has_work or self._grammars.num_waiting > 0

    @property
    def is_running(self) -> bool:
        """Whether a step is under way that the next call takes in."""
        return self._pipeline.is_running

    @property
    def num_steps(self) -> int:
        """Steps that computed something, so far."""
        return self._meter.num_steps

    def step(self) -> list[TokenOutput]:
        """One step; a step that fails ends its own requests, and the next one goes on."""
        self.pins.expire()
        outputs = self._bring_adapters()
        if self._grammars.num_waiting:
            outputs += self._take_grammars()
        for finished in self._pipeline.advance():
            self._note(finished)
            outputs += finished.outputs
        self._grammars.note(outputs)
        return outputs

    def tend(self) -> bool:
        """See to copies, pins and calls when there is no work; whether more is to be done soon."""
        self.pins.expire()
        cache = self._scheduler.cache
        cache.advance()
        if self.adapters.is_busy:
            self._bring_adapters()
        return self.adapters.is_busy or (cache.host is not None and cache.host.is_busy)

    def _bring_adapters(self) -> list[TokenOutput]:
        """Have the adapters of the next requests brought to the device."""
        scheduler = self._scheduler
        news = self.adapters.advance(scheduler.wanted_adapters(), scheduler)
        for digest in news.ready:
            scheduler.adapter_use.brought(digest)
        for digest in news.removed:
            scheduler.adapter_use.forget(digest)
        outputs = []
        for digest, error in news.failures.items():
            outputs += scheduler.fail_adapter(digest, f"its adapter can't be loaded: {error}")
        return outputs

    def _note(self, finished: FinishedStep) -> None:
        if finished.error is not None:
            logger.error("a step failed", exc_info=finished.error)
            if self._device.type == "cuda":
                # After a device-side fault every step fails: better that this raises and the
                # process ends, so that it can be started again.
                torch.cuda.synchronize(self._device)
            self._meter.num_failed_steps += 1
        else:
            self._scheduler.load.record(finished.plan, finished.seconds)
            self._tell_host_policy(finished)
        self._meter.record(finished.seconds, finished.outputs)

    def _tell_host_policy(self, finished: FinishedStep) -> None:
        if self._scheduler.cache.host is not None:
            lengths = [chunk.num_scheduled_tokens for chunk in finished.plan.chunks]
            if sum(lengths) > 2 * lengths.count(1):  # most of it is prefill
                self._scheduler.cache.host.policy.computed(sum(lengths), finished.seconds)

    @torch.inference_mode()
    def _launch(self, plan: StepPlan) -> LaunchedStep:
        """Give the device a step; on a GPU nothing here waits for it.

        Only rows under a grammar have to know the tokens of the step before it, when the device
        has this step's forward pass to go on with.
        """
        chunks = plan.sampling_chunks()
        pending_masks = self._grammars.begin_masks(chunks)
        logits, prompts = self._execute(plan)
        if not chunks:
            return LaunchedStep.without_samples(self._device, prompts)
        masks = None
        if pending_masks is not None:
            masks = pending_masks.result(logits.shape[1], self._previous_tokens)
        pending = self._sampler.launch(logits, self._rows(chunks), masks)
        if self._runs_ahead:
            self._previous, self._previous_token_ids = pending, pending.token_ids
        return LaunchedStep.of(pending, prompts, masks)

    def _previous_tokens(self) -> list[int]:
        """What the step before has sampled; waits for it."""
        assert self._previous is not None
        return self._previous.result().token_ids

    def _execute(self, plan: StepPlan) -> tuple[Tensor, PendingPrompts | None]:
        """Logits, by a captured graph where there is one for the step; and what prompts give."""
        layout, rows = lay_out(plan, self.info.block_size), prompt_rows(plan)
        previous = self._previous_token_ids
        if self._graphs is not None and not rows:
            logits = self._graphs.execute(layout, previous)
            if logits is not None:
                return logits, None
        batch = send_batch(layout, self.adapters.bank, self._device)
        if not rows:
            return self._runner.execute(batch, previous), None
        hidden = self._runner.hidden(batch, previous)
        prompts = read_prompts(self._runner.decoder, hidden, rows, batch.lora)
        return self._runner.logits(hidden, batch), prompts

    def _rows(self, chunks: Sequence[ScheduledChunk]) -> list[SamplingRow]:
        return [
            SamplingRow(
                params=chunk.request.params,
                position=chunk.end,
                choice_index=chunk.request.choice_index,
                prompt_token_ids=chunk.request.prompt_token_ids,
                output_token_ids=chunk.request.output_token_ids,
                eos_token_ids=self.info.eos_token_ids,
            )
            for chunk in chunks
        ]

    # -- the prefix cache, for admins --------------------------------------------------------------

    def report_cache(self, max_prefixes: int) -> CacheReport:
        """The prefix cache as it stands."""
        scheduler = self._scheduler
        return report_cache(scheduler.cache, scheduler.use, self.pins, max_prefixes)

    def reset_cache(self) -> int:
        """Forget every cached prefix, pinned ones too; returns the number of blocks."""
        self.pins.clear()
        return self._scheduler.cache.blocks.reset()

    def pin_prefix(self, target: PrefixTarget, ttl_seconds: float) -> PinReport:
        """Keep a cached prefix on the device; raises RequestError if that can't be."""
        self._check_token_ids("prompt", target.prompt_token_ids, target.adapter)
        return self.pins.add(target, ttl_seconds)

    def subscribe(self, listener: Callable[[CacheEvent], None]) -> None:
        """Have ``listener`` told, on this thread, of all that is cached now, comes and goes."""
        self._scheduler.cache.subscribe(listener)

    def stats(self) -> EngineStats:
        """Where the engine stands now."""
        scheduler, meter = self._scheduler, self._meter
        cache = scheduler.cache
        running, waiting = scheduler.adapters_in_use()
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            num_free_blocks=cache.blocks.num_available,
            num_blocks=cache.pool.num_usable,
            num_steps=meter.num_steps,
            num_failed_steps=meter.num_failed_steps,
            num_preemptions=scheduler.num_preemptions,
            num_held=scheduler.held.num_parked,
            num_holds=scheduler.held.num_holds,
            num_prompt_tokens=meter.num_prompt_tokens,
            num_computed_prompt_tokens=scheduler.num_computed_prompt_tokens,
            num_queued_prompt_tokens=scheduler.load.num_queued_tokens,
            prompt_tokens_per_second=scheduler.load.tokens_per_second,
            num_generation_tokens=meter.num_generation_tokens,
            num_cached_blocks=cache.blocks.num_cached,
            num_evictable_blocks=cache.blocks.num_evictable,
            num_pinned_blocks=self.pins.num_blocks,
            num_evicted_blocks=cache.blocks.num_evicted,
            num_host_blocks=cache.blocks.host.num_used,
            max_host_blocks=cache.blocks.host.num_blocks,
            num_offloaded_blocks=cache.num_offloaded,
            num_restored_blocks=cache.num_restored,
            num_overloaded=scheduler.num_overloaded,
            num_waiting_for_adapter=scheduler.num_waiting_for_adapter,
            **self._grammars.stats(),
            **self.adapters.stats(),
            last_step_seconds=meter.last_step_seconds,
            p99_step_seconds=meter.p99_step_seconds,
            running_adapters=running,
            waiting_adapters=waiting,
        )

    def check(self) -> None:
        """Assert the invariants of everything that is held; for tests and idle times."""
        self._scheduler.check()
        self.adapters.check()
        if not self.has_work:
            num_held = self._scheduler.held.num_parked
            assert self._grammars.num_open <= num_held, "the grammars of requests that have ended"
