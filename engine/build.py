"""From a configuration to a running engine: load, size the KV pool, wire the stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..kernels import ops
from ..lora.adapter import AdapterConfig
from ..lora.bank import AdapterBank
from ..lora.errors import AdapterError
from ..lora.loader import load_adapter
from ..lora.shapes import ModuleShapes
from ..lora.slots import AdapterSlots
from ..lora.weights import AdapterWeights
from .batch import StepBatch
from .blocks import BlockPool
from .config import AdapterSource, Dtype, EngineConfig
from .errors import EngineStartError
from .loop import EngineLoop
from .memory import kv_budget, num_blocks_for
from .models.config import ModelConfig
from .models.decoder import Decoder
from .runner import ModelRunner
from .sampler import Sampler, SamplingRow
from .scheduler import Scheduler, SchedulerLimits
from .types import EngineInfo, SamplingParams
from .weights import load_decoder

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
    bank, slots = _load_adapters(config.adapters, decoder, on_progress)
    num_blocks = _num_blocks(config, decoder, max_model_len)
    on_progress(f"{num_blocks - 1} KV blocks of {config.block_size} tokens")
    info = EngineInfo(
        model=config.model,
        architecture=model.architecture,
        device=str(device),
        dtype=dtype_name(dtype),
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        num_blocks=num_blocks - 1,
        eos_token_ids=list(model.eos_token_ids),
    )
    scheduler = Scheduler(
        BlockPool(num_blocks, config.block_size),
        slots,
        SchedulerLimits(max_model_len, config.max_num_seqs, config.max_num_batched_tokens),
        model.eos_token_ids,
    )
    runner = ModelRunner(decoder, num_blocks, config.block_size)
    return EngineLoop(info, scheduler, runner, Sampler(), bank)


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


def _load_adapters(
    sources: Sequence[AdapterSource], decoder: Decoder, on_progress: Progress
) -> tuple[AdapterBank | None, AdapterSlots]:
    """Load every adapter version of the configuration into a bank of just their size."""
    versions = {source.digest: source for source in sources}
    slots = AdapterSlots(len(versions))
    if not versions:
        return None, slots
    shapes = module_shapes(decoder.config)
    loaded: list[AdapterWeights] = []
    for source in versions.values():
        on_progress(f"loading adapter {source.path}")
        loaded.append(_load_adapter(Path(source.path), shapes))
    num_pages = Counter[str]()
    for weights in loaded:
        num_pages.update(weights.num_pages)
    bank = AdapterBank(
        shapes, shapes.num_layers, num_pages, decoder.dtype, decoder.device, len(versions)
    )
    for digest, weights in zip(versions, loaded, strict=True):
        bank.load(slots.add(digest), weights)
    return bank, slots


def _load_adapter(path: Path, shapes: ModuleShapes) -> AdapterWeights:
    try:
        return load_adapter(path, AdapterConfig.from_directory(path), shapes)
    except AdapterError as error:
        raise AdapterError(f"adapter {path}", str(error)) from error


def module_shapes(model: ModelConfig) -> ModuleShapes:
    """The linears of ``model`` that can carry an adapter."""
    return ModuleShapes.for_decoder(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        fused=model.fused_projections,
    )


def _num_blocks(config: EngineConfig, decoder: Decoder, max_model_len: int) -> int:
    """Blocks of the KV pool, the reserved one included."""
    model = decoder.config
    token_bytes = (
        2 * model.num_layers * model.num_kv_heads * model.head_dim * decoder.dtype.itemsize
    )
    block_bytes = token_bytes * config.block_size
    wanted_blocks = config.max_num_seqs * -(-max_model_len // config.block_size) + 1
    if decoder.device.type == "cuda" and config.kv_cache_gb is None:
        run_largest_step(config, decoder, max_model_len)
        # Attention copies one layer's keys and values, padded to twice their size at most.
        block_bytes += 2 * block_bytes // model.num_layers
    budget = kv_budget(config, decoder.device, wanted_blocks * block_bytes)
    fitting = num_blocks_for(budget, block_bytes, config.block_size, max_model_len)
    return min(fitting, wanted_blocks)


def run_largest_step(config: EngineConfig, decoder: Decoder, max_model_len: int) -> None:
    """Let the allocator meet its peak: a step of the whole token budget, every row sampled."""
    size = config.block_size
    num_tokens = min(config.max_num_batched_tokens, max_model_len)
    num_blocks = -(-num_tokens // size) + 1
    device = decoder.device
    tokens = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    rows = min(config.max_num_seqs, num_tokens)
    batch = StepBatch(
        input_ids=tokens,
        positions=torch.arange(num_tokens, device=device),
        slot_mapping=torch.arange(size, size + num_tokens, device=device),
        logits_indices=tokens[:rows],
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
