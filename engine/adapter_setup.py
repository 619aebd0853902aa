"""The adapters an engine starts with: room for them, and those that its configuration names."""

from __future__ import annotations

import tempfile
import time

import torch

from ..lora.errors import AdapterError
from .adapter_format import FormatJob, format_adapter, formatted_path
from .adapter_memory import AdapterBudget, adapter_budget
from .adapters import EngineAdapters
from .config import AdapterSource, EngineConfig
from .errors import EngineStartError
from .machine import dtype_name
from .models.decoder import Decoder
from .module_shapes import module_shapes
from .progress import OnProgress, Progress

POLL_SECONDS = 0.001


def open_adapters(
    config: EngineConfig, decoder: Decoder, on_progress: OnProgress
) -> EngineAdapters:
    """Room for adapters, and those that ``config`` names in it.

    Raises AdapterError that names the directory of one that is refused.
    """
    shapes = module_shapes(decoder.config)
    budget = adapter_budget(config, shapes, decoder.dtype, decoder.device)
    adapters = _empty(budget, decoder)
    if config.adapters:
        adapters.spool = tempfile.TemporaryDirectory(prefix="branchline-adapters-")
        for source in config.adapters:
            on_progress(Progress(f"loading adapter {source.path}"))
            _add(adapters, source, _job(config, decoder.dtype, source, adapters.spool.name))
        _load_first(adapters)
    return adapters


def _empty(budget: AdapterBudget, decoder: Decoder) -> EngineAdapters:
    try:
        return EngineAdapters.with_budget(budget, decoder)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # host memory that a GPU is to read, and can't
        raise EngineStartError(f"adapter_host_gb: {error}") from error


def _job(config: EngineConfig, dtype: torch.dtype, source: AdapterSource, spool: str) -> FormatJob:
    return FormatJob(
        config.model,
        dtype_name(dtype),
        source.path,
        spool,
        adapter_dtype=config.adapter_dtype,
    )


def _add(adapters: EngineAdapters, source: AdapterSource, job: FormatJob) -> None:
    """Format one directory, unless another has the same bytes, and make it known."""
    if source.digest in adapters.traits:
        return
    try:
        digest = format_adapter(job).digest
        adapters.add(source.digest, str(formatted_path(job.target, digest)), is_alias=True)
    except AdapterError as error:
        raise AdapterError(f"adapter {source.path}", str(error)) from error


def _load_first(adapters: EngineAdapters) -> None:
    """Bring in as many as there is room for, in their order."""
    failures: dict[str, str] = {}
    while adapters.is_busy and not failures:
        failures = adapters.advance((), _Nobody()).failures
        time.sleep(POLL_SECONDS)
    adapters.events()
    if failures:
        raise AdapterError("adapters", next(iter(failures.values())))


class _Nobody:
    """There are no requests yet."""

    def num_requests_of(self, adapter: str) -> int:
        """None."""
        return 0
