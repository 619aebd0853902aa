"""How many KV blocks an engine gets: on a GPU what its largest step leaves of the memory."""

from __future__ import annotations

import torch

from ..kernels import ops
from .blocks import NUM_RESERVED_BLOCKS
from .config import EngineConfig
from .kv_layout import KvLayout
from .machine import step_budget
from .memory import kv_budget, num_blocks_for
from .models.decoder import Decoder
from .prompt_reader import warm_up_prompts
from .sampler import Sampler
from .step_profile import profile_run


def kv_layout(config: EngineConfig, decoder: Decoder) -> KvLayout:
    """Blocks of the size and dtype that are asked for."""
    dtype = ops.FP8 if config.kv_cache_dtype == "fp8" else decoder.dtype
    return KvLayout(decoder.config, config.block_size, dtype)


def num_kv_blocks(config: EngineConfig, decoder: Decoder, layout: KvLayout) -> int:
    """Blocks of the KV pool, the reserved one included; all else is on the device already."""
    max_model_len = decoder.max_model_len
    blocks_each = -(-max_model_len // config.block_size)
    wanted_blocks = config.max_num_seqs * blocks_each + NUM_RESERVED_BLOCKS
    step_bytes = 0
    if decoder.device.type == "cuda":
        step_bytes = measure_step(config, decoder, layout.dtype)
    wanted = wanted_blocks * layout.block_bytes
    budget = kv_budget(config, decoder.device, wanted, step_bytes)
    fitting = num_blocks_for(budget, layout.block_bytes, config.block_size, max_model_len)
    return min(fitting, wanted_blocks)


def measure_step(config: EngineConfig, decoder: Decoder, kv_dtype: torch.dtype) -> int:
    """Bytes that the largest step takes on a GPU, beside what lies there already.

    It also has Triton compile what steps need, which takes memory of its own. What the allocator
    keeps of all that is given back, in one piece for the pool.
    """
    device = decoder.device
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_largest_step(config, decoder, kv_dtype)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated(device) - before


@torch.inference_mode()
def run_largest_step(config: EngineConfig, decoder: Decoder, kv_dtype: torch.dtype) -> None:
    """A step of the whole token budget, every row of it sampled by the dearest rules."""
    num_tokens = step_budget(config, decoder.device)
    logits = profile_run(decoder, config.block_size, num_tokens, config.max_num_seqs, kv_dtype)
    Sampler().warm_up(logits)
    del logits
    warm_up_prompts(decoder, num_tokens)
