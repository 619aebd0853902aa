"""A scheduler over the fake model, which checks what comes out as it comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fake_model import (
    ADAPTERS,
    DIGESTS,
    EOS,
    FakeCopier,
    FakeModel,
    FakeStep,
    Setting,
    author_of,
    expected_output,
    expected_vector,
)

from branchline.engine.batch import build_batch
from branchline.engine.blocks import BlockPool
from branchline.engine.limits import SchedulerLimits
from branchline.engine.pipeline import StepPipeline
from branchline.engine.plan import StepPlan
from branchline.engine.prefix_cache import PrefixCache
from branchline.engine.prompt_rows import prompt_rows
from branchline.engine.request import Request
from branchline.engine.restore_policy import RestorePolicy
from branchline.engine.scheduler import Scheduler
from branchline.engine.types import GenerationRequest, TokenOutput
from branchline.lora.slots import AdapterSlots


@dataclass(slots=True)
class Progress:
    generation: GenerationRequest
    expected: list[int]
    output: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None


class House:
    """A scheduler over the fake model; checks what comes out as it comes out."""

    def __init__(self, setting: Setting) -> None:
        longest = -(-setting.max_model_len // setting.block_size)
        num_blocks = 2 + longest + setting.num_spare_blocks
        self.setting = setting
        self.slots = AdapterSlots(setting.num_slots)
        for digest in DIGESTS:
            self.slots.register(digest)
        for digest in DIGESTS[: setting.num_slots]:
            self.slots.add(digest)
        self.cache = PrefixCache(
            BlockPool(num_blocks, setting.block_size),
            "model",
            enabled=setting.enabled,
            tenant_share=setting.tenant_share,
            num_host_blocks=setting.num_host_blocks,
        )
        self.model = FakeModel(num_blocks, setting.num_host_blocks, setting.block_size)
        self.copier = FakeCopier(self.model)
        if setting.num_host_blocks:
            self.cache.attach_host(self.copier, RestorePolicy(1, setting.block_size))
        limits = SchedulerLimits(
            max_model_len=setting.max_model_len,
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=setting.budget,
            max_step_rank=setting.max_step_rank,
            max_queued_requests=setting.max_queued_requests,
            policy=setting.policy,
            max_overtake_cost=setting.max_overtake_cost,
            isolate_tenants=setting.isolate_tenants,
        )
        self.scheduler = Scheduler(self.cache, self.slots, limits, ADAPTERS, (EOS,))
        self.pipeline = StepPipeline(self.scheduler, self._launch, setting.depth)
        self.live: dict[str, Progress] = {}
        self.finished: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}
        self.overloaded: list[str] = []
        self._num_errors = 0
        self._fails = False
        self._may_err: set[str] = set()
        self._loading: dict[str, int] = {}
        self.plans: list[StepPlan] = []

    def add(self, generation: GenerationRequest) -> None:
        outputs = self.scheduler.add(generation)
        num_given = len(generation.output_token_ids)
        expected = expected_output(generation, self.setting)[num_given:]
        self.live[generation.request_id] = Progress(generation, expected)
        for output in outputs:
            assert output.error_kind == "overloaded"
            assert output.retry_after is not None
            assert not self.live.pop(output.request_id).output
            self.overloaded.append(output.request_id)

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self.live.pop(request_id, None)

    def hold(self, request_id: str) -> None:
        self.scheduler.hold(request_id)

    def go_on(self, request_id: str) -> None:
        self.scheduler.go_on(request_id)

    def step(self, num_errors: int = 0) -> StepPlan:
        """One turn; the first rows of a step that it launches may be in error."""
        self._num_errors = num_errors
        return self._turn()

    def failing_step(self) -> StepPlan:
        """A turn whose step raises, after it may have written anything to its own blocks."""
        self._fails = True
        return self._turn()

    def _turn(self) -> StepPlan:
        num_plans = len(self.plans)
        self._bring_adapters()
        for finished in self.pipeline.advance():
            if isinstance(finished.error, AssertionError):
                raise finished.error
            self._take(finished.outputs)
        self._num_errors, self._fails = 0, False
        self.check()
        launched = self.plans[num_plans:]
        return launched[0] if launched else StepPlan(())

    def _bring_adapters(self) -> None:
        """Load what is wanted where a slot is free or can be had; that takes two turns.

        What has just come stays for this turn, so that whoever waited for it can lease it.
        """
        just_ready = set()
        for digest in list(self._loading):
            self._loading[digest] -= 1
            if not self._loading[digest]:
                del self._loading[digest]
                self.slots.finish_load(digest)
                just_ready.add(digest)
        wanted = self.scheduler.wanted_adapters()
        for digest in wanted:
            if self.slots.state(digest) != "absent":
                continue
            kept = {*wanted[:1], *just_ready}
            unwanted = [other for other in self.slots.evictable() if other not in kept]
            if not self.slots.num_free and unwanted:
                self.slots.drop(unwanted[0])
            if self.slots.num_free:
                self.slots.start_load(digest)
                self._loading[digest] = 2

    def _launch(self, plan: StepPlan) -> FakeStep:
        self.plans.append(plan)
        setting = self.setting
        self.check()
        requests = [chunk.request for chunk in plan.chunks]
        assert len({request.request_id for request in requests}) == len(requests)
        assert sum(chunk.num_scheduled_tokens for chunk in plan.chunks) <= setting.budget
        assert len(self.scheduler.running) <= setting.max_num_seqs
        assert all(chunk.num_scheduled_tokens > 0 for chunk in plan.chunks)
        assert not any(request.is_held for request in requests)
        for request in requests:
            assert (request.slot is None) == (request.adapter is None)
        self._check_ranks(requests)
        batch = build_batch(plan, setting.block_size, None, torch.device("cpu"))
        authors = [
            author_of(self.live[request.request_id].generation, setting.isolate_tenants)
            for request in requests
        ]
        prompts = prompt_rows(plan)
        step = FakeStep(self.model, plan, batch, authors, prompts, self._num_errors, self._fails)
        if self._fails:
            self._may_err |= {request.request_id for request in requests}
        bad = plan.sampling_chunks()[: self._num_errors]
        self._may_err |= {chunk.request.request_id for chunk in bad}
        return step

    def _check_ranks(self, requests: list[Request]) -> None:
        adapters = {request.adapter for request in requests if request.adapter}
        total = sum(ADAPTERS[adapter].rank for adapter in adapters)
        limit = self.setting.max_step_rank
        assert limit is None or total <= limit or len(adapters) == 1

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            progress = self.live[output.request_id]
            if output.error:
                assert output.request_id in self._may_err, output
            if not progress.output and not output.error:
                self.cached[output.request_id] = output.num_cached_tokens
                self._check_prompt_output(progress.generation, output)
            progress.output += output.token_ids
            assert progress.output == progress.expected[: len(progress.output)]
            if output.finish_reason is not None:
                del self.live[output.request_id]
                if not output.error:
                    assert progress.output == progress.expected
                    self.finished[output.request_id] = progress.output

    def _check_prompt_output(self, generation: GenerationRequest, output: TokenOutput) -> None:
        """With the first output comes all that is wanted of the prompt, each row of it once."""
        assert output.embedding == expected_vector(generation)
        if generation.params.prompt_logprobs is None:
            assert output.prompt_logprobs is None
            return
        prompt = generation.prompt_token_ids
        first, *entries = output.prompt_logprobs or ()
        assert first is None
        found = [(entry.rank, entry.logprob, entry.token_id) for entry in entries]
        assert found == list(zip(prompt, range(len(prompt)), prompt[1:], strict=False))

    def check(self) -> None:
        self.scheduler.check()
        for digest in DIGESTS:
            holders = [r for r in self.scheduler.running if r.adapter == digest]
            assert self.slots.num_leases(digest) >= len(holders)

    def drain(self, max_steps: int = 20_000) -> None:
        for request_id in self.live:
            self.go_on(request_id)
        for _ in range(max_steps):
            if not self.pipeline.has_work:
                break
            self.step()
        assert not self.live
        assert not self.scheduler.has_requests
        for _ in range(10_000):
            if self.cache.host is None or not self.cache.host.is_busy:
                break
            self.cache.advance()
        blocks = self.cache.blocks
        self.check()
        assert blocks.num_private == 0
        assert blocks.num_available == self.cache.pool.num_usable
        assert not any(self.slots.num_leases(digest) for digest in DIGESTS)
