"""From a configuration to a running engine: load, size the KV pool, wire the stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..kernels import ops
from .adapter_setup import open_adapters
from .batch import StepBatch
from .blocks import NUM_RESERVED_BLOCKS, BlockPool
from .config import Dtype, EngineConfig
from .errors import EngineStartError
from .kv_copier import KvCopier
from .limits import SchedulerLimits
from .loop import EngineLoop, EngineParts
from .memory import host_blocks_for, kv_budget, num_blocks_for
from .models.config import ModelConfig
from .models.decoder import Decoder
from .pins import Pins
from .prefix_cache import PrefixCache
from .restore_policy import RestorePolicy
from .runner import ModelRunner
from .sampler import Sampler, SamplingRow
from .scheduler import Scheduler
from .types import EngineInfo, SamplingParams
from .weights import load_decoder

GPU_STEP_BUDGET, CPU_STEP_BUDGET = 2048, 512

Progress = Callable[[str], None]


def build_engine(config: EngineConfig, on_progress: Progress = lambda text: None) -> EngineLoop:
    """Bring an engine up; raises BranchlineError with one line on what is wrong."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    model = ModelConfig.from_directory(config.model)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, model.dtype, device)
    max_model_len = _max_model_len(config, model)
    on_progress(f"loading {config.model} as {dtype_name(dtype)} on {device}")
    decoder = load_decoder(Path(config.model), model, dtype, device, max_model_len)
    adapters = open_adapters(config, decoder, on_progress)
    num_blocks = _num_blocks(config, decoder, max_model_len)
    num_usable = num_blocks - NUM_RESERVED_BLOCKS
    on_progress(f"{num_usable} KV blocks of {config.block_size} tokens")
    info = EngineInfo(
        model=config.model,
        architecture=model.architecture,
        device=str(device),
        dtype=dtype_name(dtype),
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        max_num_seqs=min(config.max_num_seqs, step_budget(config, device)),
        block_size=config.block_size,
        num_blocks=num_usable,
        eos_token_ids=list(model.eos_token_ids),
    )
    runner = ModelRunner(decoder, num_blocks, config.block_size)
    cache = _build_cache(config, decoder, runner, on_progress)
    limits = _limits(config, max_model_len, device)
    scheduler = Scheduler(cache, adapters.slots, limits, adapters.traits, model.eos_token_ids)
    # The longest request must fit beside what is pinned.
    max_pinned = num_usable - -(-max_model_len // config.block_size)
    pins = Pins(cache, scheduler.intake, max_pinned, time.monotonic)
    parts = EngineParts(scheduler, runner, Sampler(), adapters, pins)
    return EngineLoop(info, parts, depth=int(config.async_scheduling))


def _build_cache(
    config: EngineConfig, decoder: Decoder, runner: ModelRunner, on_progress: Progress
) -> PrefixCache:
    """The prefix cache over the runner's pool, and its host tier if there is to be one."""
    size = block_bytes(config, decoder)
    offload_gb = config.kv_offload_gb if config.enable_prefix_caching else 0.0
    num_host_blocks = host_blocks_for(offload_gb, size)
    cache = PrefixCache(
        BlockPool(runner.kv_pool.shape[2], config.block_size),
        config.model,
        enabled=config.enable_prefix_caching,
        tenant_share=config.tenant_kv_share,
        num_host_blocks=num_host_blocks,
    )
    if num_host_blocks:
        on_progress(f"{num_host_blocks} KV blocks in host memory")
        policy = RestorePolicy(size, config.block_size)
        cache.attach_host(KvCopier(runner.kv_pool, num_host_blocks), policy)
    return cache


def step_budget(config: EngineConfig, device: torch.device) -> int:
    """Tokens that one step may compute."""
    by_device = CPU_STEP_BUDGET if device.type == "cpu" else GPU_STEP_BUDGET
    return config.max_num_batched_tokens or by_device


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


def choose_device(wanted: str) -> torch.device:
    """The device asked for, or CUDA where there is one."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EngineStartError("device: cuda was asked for, but torch sees no CUDA device")
    return torch.device("cuda", 0) if available and wanted != "cpu" else torch.device("cpu")


def choose_dtype(wanted: Dtype, stored: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or by machine: see docs/decisions/ on dtypes.

    A GPU gets bfloat16 (float16 where the checkpoint is float16 or the card has no
    bfloat16). A CPU keeps half precision only where it multiplies bfloat16 natively.
    """
    if wanted != "auto":
        dtype = getattr(torch, wanted)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native and stored != "float16" else torch.float16
    return torch.bfloat16 if stored == "bfloat16" and _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    wanted = config.max_model_len
    if wanted is not None and wanted > longest:
        raise EngineStartError(
            f"max_model_len: {wanted} is over the model's max_position_embeddings, {longest}"
        )
    return wanted or longest


def block_bytes(config: EngineConfig, decoder: Decoder) -> int:
    """Bytes that one KV block takes over all layers."""
    model = decoder.config
    token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * decoder.dtype.itemsize
    return token * config.block_size


def _num_blocks(config: EngineConfig, decoder: Decoder, max_model_len: int) -> int:
    """Blocks of the KV pool, the reserved one included."""
    size = block_bytes(config, decoder)
    blocks_each = -(-max_model_len // config.block_size)
    wanted_blocks = config.max_num_seqs * blocks_each + NUM_RESERVED_BLOCKS
    if decoder.device.type == "cuda" and config.kv_cache_gb is None:
        run_largest_step(config, decoder, max_model_len)
        # Attention copies one layer's keys and values, padded to twice their size at most.
        size += 2 * size // decoder.config.num_layers
    budget = kv_budget(config, decoder.device, wanted_blocks * size)
    fitting = num_blocks_for(budget, size, config.block_size, max_model_len)
    return min(fitting, wanted_blocks)


def run_largest_step(config: EngineConfig, decoder: Decoder, max_model_len: int) -> None:
    """Let the allocator meet its peak: a step of the whole token budget, every row sampled."""
    size = config.block_size
    num_tokens = min(step_budget(config, decoder.device), max_model_len)
    num_blocks = -(-num_tokens // size) + 1
    device = decoder.device
    tokens = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    rows = min(config.max_num_seqs, num_tokens)
    batch = StepBatch(
        input_ids=tokens,
        positions=torch.arange(num_tokens, device=device),
        slot_mapping=torch.arange(size, size + num_tokens, device=device),
        logits_indices=tokens[:rows],
        follows=None,
        attention=ops.build_attention_metadata(
            [list(range(1, num_blocks))], [num_tokens], [num_tokens], device
        ),
        lora=None,
    )
    with torch.inference_mode():
        logits = ModelRunner(decoder, num_blocks, size).execute(batch)
        params = SamplingParams(temperature=1.0, top_p=0.9, seed=0, logprobs=1)
        row = SamplingRow(params=params, position=0, prompt_token_ids=(), output_token_ids=())
        Sampler().sample(logits, [row] * rows)
