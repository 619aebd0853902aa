"""Engine configuration: parsed once at the edge, frozen from then on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """One adapter version for the engine to load: content digest and PEFT directory."""

    digest: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything the engine process needs to start.

    ``model`` is a local directory. ``kv_cache_gb`` sizes the KV pool in GiB; when None a
    GPU takes ``gpu_memory_utilization`` of its memory and a CPU takes what
    ``max_num_seqs`` sequences need, up to a quarter of the machine's memory.
    """

    model: str
    adapters: tuple[AdapterSource, ...] = ()
    dtype: Dtype = "auto"
    device: Device = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    kv_cache_gb: float | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no machine could run."""
        _require("max_num_seqs", self.max_num_seqs >= 1, "at least 1")
        _require("max_num_batched_tokens", self.max_num_batched_tokens >= 1, "at least 1")
        _require("block_size", 1 <= self.block_size <= 256, "between 1 and 256")
        _require(
            "gpu_memory_utilization", 0 < self.gpu_memory_utilization <= 1, "over 0, at most 1"
        )
        _require("kv_cache_gb", self.kv_cache_gb is None or self.kv_cache_gb > 0, "over 0")
        _require(
            "max_model_len", self.max_model_len is None or self.max_model_len >= 2, "at least 2"
        )
        _require("dtype", self.dtype in get_args(Dtype), f"one of {', '.join(get_args(Dtype))}")
        _require("device", self.device in get_args(Device), f"one of {', '.join(get_args(Device))}")
        _require("num_threads", self.num_threads is None or self.num_threads >= 1, "at least 1")


def _require(name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}")
