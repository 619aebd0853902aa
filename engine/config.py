"""Engine configuration: parsed once at the edge, frozen from then on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
KvCacheDtype = Literal["auto", "fp8"]
AdapterDtype = Literal["auto", "fp8"]
Quantization = Literal["fp8"]
SchedulingPolicy = Literal["fair", "fcfs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """One adapter version for the engine to load: content digest and PEFT directory."""

    digest: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything the engine process needs to start.

    ``model`` is a local directory. ``max_num_batched_tokens`` None is 2,048 on a GPU and 512 on a
    CPU, where a larger step computes no faster and holds up streams for longer.

    ``kv_cache_gb`` sizes the KV pool in GiB; when None a GPU takes ``gpu_memory_utilization`` of
    its memory and a CPU takes what ``max_num_seqs`` sequences need, up to
    ``cpu_memory_utilization`` of the machine's memory.
    ``kv_offload_gb`` is host memory for blocks that leave the pool. Requests of different
    tenants share no KV blocks while ``isolate_tenants``.

    With ``async_scheduling`` the next step is planned while the last one runs; None is on for a
    GPU and off for a CPU. ``enforce_eager`` launches every kernel of every step by itself, without
    CUDA graphs.

    ``quantization`` "fp8" keeps the weights of the layers' linears in 8 bits, ``kv_cache_dtype``
    "fp8" the keys and values, ``adapter_dtype`` "fp8" the pages of adapters' ranks; all with
    scales.

    ``max_loras`` adapters are on the device at once (None: 256), as far as ``adapter_memory_gb``
    for their ranks and ``adapter_dense_gb`` for what else they bring allow; ``adapter_host_gb`` of
    host memory keeps copies (None: chosen by machine). The ranks of those in one step sum to
    ``max_step_rank`` at most. ``max_queued_requests`` None sets no limit. A request is
    overtaken by at most ``max_overtake_cost`` cost units (see docs/decisions on fairness);
    ``tenant_kv_share`` of the pool is what one tenant keeps while others need it.

    ``tell_blocks``: the server hears which blocks the prefix cache holds.
    """

    model: str
    adapters: tuple[AdapterSource, ...] = ()
    dtype: Dtype = "auto"
    quantization: Quantization | None = None
    device: Device = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    cpu_memory_utilization: float = 0.25
    kv_cache_gb: float | None = None
    kv_cache_dtype: KvCacheDtype = "auto"
    num_threads: int | None = None
    enable_prefix_caching: bool = True
    kv_offload_gb: float = 0.0
    isolate_tenants: bool = True
    max_loras: int | None = None
    adapter_dtype: AdapterDtype = "auto"
    adapter_memory_gb: float | None = None
    adapter_dense_gb: float | None = None
    adapter_host_gb: float | None = None
    max_step_rank: int | None = None
    scheduling_policy: SchedulingPolicy = "fair"
    async_scheduling: bool | None = None
    enforce_eager: bool = False
    max_queued_requests: int | None = None
    max_overtake_cost: int = 65536
    tenant_kv_share: float = 0.5
    tell_blocks: bool = False

    def __post_init__(self) -> None:
        """Refuse what no machine could run."""
        _require("max_num_seqs", self.max_num_seqs >= 1, "at least 1")
        _require("block_size", 1 <= self.block_size <= 256, "between 1 and 256")
        for name in ("gpu_memory_utilization", "cpu_memory_utilization"):
            _require(name, 0 < getattr(self, name) <= 1, "over 0, at most 1")
        _require("kv_cache_gb", self.kv_cache_gb is None or self.kv_cache_gb > 0, "over 0")
        _require(
            "max_model_len", self.max_model_len is None or self.max_model_len >= 2, "at least 2"
        )
        for name, choice in (
            ("dtype", Dtype),
            ("device", Device),
            ("kv_cache_dtype", KvCacheDtype),
            ("adapter_dtype", AdapterDtype),
            ("scheduling_policy", SchedulingPolicy),
        ):
            allowed = get_args(choice)
            _require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        _require("quantization", self.quantization in (None, "fp8"), "fp8, or left out")
        for name in (
            *("num_threads", "max_loras", "max_step_rank", "max_queued_requests"),
            "max_num_batched_tokens",
        ):
            value = getattr(self, name)
            _require(name, value is None or value >= 1, "at least 1")
        for name in ("adapter_memory_gb", "adapter_dense_gb", "adapter_host_gb"):
            value = getattr(self, name)
            _require(name, value is None or value >= 0, "0 or more")
        _require("kv_offload_gb", self.kv_offload_gb >= 0, "0 or more")
        _require("max_overtake_cost", self.max_overtake_cost >= 1, "at least 1")
        _require("tenant_kv_share", 0 < self.tenant_kv_share <= 1, "over 0, at most 1")


def _require(name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}")
