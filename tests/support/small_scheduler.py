"""A small scheduler, requests for it, and steps without a model."""

from __future__ import annotations

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool
from branchline.engine.limits import SchedulerLimits
from branchline.engine.plan import SampledToken
from branchline.engine.prefix_cache import PrefixCache
from branchline.engine.scheduler import Scheduler
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.lora.slots import AdapterSlots
from branchline.lora.traits import AdapterTraits

EOS = 99
RANKS = {"digest-a": 16, "digest-b": 32, "digest-c": 64}


def make_scheduler(
    num_blocks=64, block_size=4, budget=32, max_num_seqs=8, max_model_len=100, **options
):
    slots = AdapterSlots(2)
    for digest in RANKS:
        slots.register(digest)
    slots.add("digest-a")
    slots.add("digest-b")
    clock = {"clock": options.pop("clock")} if "clock" in options else {}
    cache = PrefixCache(
        BlockPool(num_blocks - 1 + NUM_RESERVED_BLOCKS, block_size),
        "model",
        enabled=options.pop("caching", True),
        tenant_share=options.pop("tenant_share", 1.0),
    )
    limits = SchedulerLimits(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        **options,
    )
    traits = {digest: AdapterTraits(rank, 1 << 20) for digest, rank in RANKS.items()}
    return Scheduler(cache, slots, limits, traits, (EOS,), **clock)


def generation(request_id, num_prompt=5, adapter=None, priority=0, tenant="default", **params):
    """The first token is the request's own, so that only equal names share a prefix."""
    params = {"temperature": 0, "seed": 0, "max_tokens": 4, **params}
    first = params.pop("first", sum(request_id.encode()))
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=[first, *range(1, num_prompt)][:num_prompt],
        params=SamplingParams(**params),
        adapter=adapter,
        priority=priority,
        tenant=tenant,
    )


def lengths(plan):
    return {chunk.request.request_id: chunk.num_scheduled_tokens for chunk in plan.chunks}


def step(scheduler, token_id=7):
    plan = scheduler.schedule()
    scheduler.check()
    if not plan.chunks:
        return plan, []
    outputs = scheduler.apply(plan, [SampledToken(token_id) for _ in plan.sampling_chunks()])
    scheduler.check()
    return plan, outputs
