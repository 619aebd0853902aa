"""From a configuration to a running engine: load, size the KV pool, wire the stages."""

from __future__ import annotations

import time

import torch

from ..lora.shapes import PAGE_RANK
from .adapter_setup import open_adapters
from .adapters import EngineAdapters
from .blocks import NUM_RESERVED_BLOCKS, BlockPool
from .config import EngineConfig
from .errors import EngineStartError
from .graph_setup import open_graphs
from .kv_copier import KvCopier
from .kv_layout import KvLayout
from .kv_room import kv_layout, num_kv_blocks
from .limits import SchedulerLimits
from .loop import EngineLoop, EngineParts
from .machine import (
    choose_device,
    choose_dtype,
    dtype_name,
    pipeline_depth,
    step_budget,
    told_of_memory,
)
from .memory import host_blocks_for
from .models.config import ModelConfig
from .models.decoder import Decoder
from .pins import Pins
from .prefix_cache import PrefixCache
from .progress import OnProgress, Progress, tell_nobody
from .quantization import require_float8
from .restore_policy import RestorePolicy
from .runner import ModelRunner
from .sampler import Sampler
from .scheduler import Scheduler
from .step_warm_up import warm_up_adapters, warm_up_decodes
from .types import EngineInfo
from .weights import load_decoder


def build_engine(config: EngineConfig, on_progress: OnProgress = tell_nobody) -> EngineLoop:
    """Bring an engine up; raises BranchlineError with one line on what is wrong."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    model = ModelConfig.from_directory(config.model)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, model.dtype, device)
    max_model_len = _max_model_len(config, model)
    on_progress(Progress(f"loading {config.model} as {dtype_name(dtype)} on {device}"))
    require_float8(config, device)
    with told_of_memory():
        decoder = load_decoder(
            config.model,
            model,
            dtype,
            device,
            max_model_len,
            quantization=config.quantization,
            on_progress=on_progress,
        )
        return assemble_engine(config, model, decoder, on_progress)


def assemble_engine(
    config: EngineConfig,
    model: ModelConfig,
    decoder: Decoder,
    on_progress: OnProgress = tell_nobody,
) -> EngineLoop:
    """The engine around a decoder that is on its device: adapters, the KV pool, all stages.

    Device, dtype and longest sequence are the decoder's, whatever ``config`` has of them.
    """
    device = decoder.device
    adapters = open_adapters(config, decoder, on_progress)
    layout = kv_layout(config, decoder)
    num_blocks = num_kv_blocks(config, decoder, layout)
    runner = ModelRunner(decoder, num_blocks, config.block_size, layout.dtype)
    cache = _build_cache(config, layout, runner, num_blocks, on_progress)
    limits = _limits(config, decoder.max_model_len, device)
    scheduler = Scheduler(cache, adapters.slots, limits, adapters.traits, model.eos_token_ids)
    info = _info(config, decoder, num_blocks - NUM_RESERVED_BLOCKS)
    # The longest request must fit beside what is pinned.
    max_pinned = info.num_blocks - -(-info.max_model_len // config.block_size)
    pins = Pins(cache, scheduler.intake, max_pinned, time.monotonic)
    if device.type == "cuda":
        on_progress(Progress("compiling kernels"))
        warm_up_decodes(runner, info.max_num_seqs)
        warm_up_adapters(runner, adapters.bank, step_budget(config, device))
    graphs = open_graphs(config, runner, adapters.bank, info.max_num_seqs, on_progress)
    parts = EngineParts(scheduler, runner, Sampler(), adapters, pins, graphs)
    on_progress(Progress(_room(info, adapters)))
    return EngineLoop(info, parts, depth=pipeline_depth(config, device))


def _info(config: EngineConfig, decoder: Decoder, num_usable: int) -> EngineInfo:
    model, device = decoder.config, decoder.device
    return EngineInfo(
        model=config.model,
        architecture=model.architecture,
        device=str(device),
        dtype=dtype_name(decoder.dtype),
        adapter_dtype=config.adapter_dtype,
        vocab_size=model.vocab_size,
        max_model_len=decoder.max_model_len,
        max_num_seqs=min(config.max_num_seqs, step_budget(config, device)),
        block_size=config.block_size,
        num_blocks=num_usable,
        eos_token_ids=list(model.eos_token_ids),
        hidden_size=model.hidden_size,
    )


def _room(info: EngineInfo, adapters: EngineAdapters) -> str:
    num_tokens = info.num_blocks * info.block_size
    pages = min(pool.num_pages for pool in adapters.bank.pools.values())
    num_adapters = min(pages, adapters.slots.num_slots)
    return f"room for {num_tokens:,} tokens of KV and {num_adapters:,} adapters of rank {PAGE_RANK}"


def _build_cache(
    config: EngineConfig,
    layout: KvLayout,
    runner: ModelRunner,
    num_blocks: int,
    on_progress: OnProgress,
) -> PrefixCache:
    """The prefix cache over the runner's pool, and its host tier if there is to be one."""
    size = layout.block_bytes
    offload_gb = config.kv_offload_gb if config.enable_prefix_caching else 0.0
    num_host_blocks = host_blocks_for(offload_gb, size)
    cache = PrefixCache(
        BlockPool(num_blocks, config.block_size),
        config.model,
        enabled=config.enable_prefix_caching,
        tenant_share=config.tenant_kv_share,
        num_host_blocks=num_host_blocks,
    )
    if num_host_blocks:
        num_tokens = num_host_blocks * config.block_size
        on_progress(Progress(f"room for {num_tokens:,} tokens of KV in host memory"))
        policy = RestorePolicy(size, config.block_size)
        cache.attach_host(KvCopier(runner.kv_pool, num_host_blocks), policy)
    return cache


def _limits(config: EngineConfig, max_model_len: int, device: torch.device) -> SchedulerLimits:
    return SchedulerLimits(
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=step_budget(config, device),
        max_step_rank=config.max_step_rank,
        max_queued_requests=config.max_queued_requests,
        policy=config.scheduling_policy,
        max_overtake_cost=config.max_overtake_cost,
        isolate_tenants=config.isolate_tenants,
    )


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    wanted = config.max_model_len
    if wanted is not None and wanted > longest:
        raise EngineStartError(
            f"max_model_len: {wanted} is over the model's max_position_embeddings, {longest}"
        )
    return wanted or longest
