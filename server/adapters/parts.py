"""What the adapters of a server are made with, put together into their manager."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..catalog import Catalog
from ..metrics import ServerMetrics
from ..supervisor import EngineSupervisor
from .engine_adapters import EngineAdapters
from .intake import AdapterIntake, BaseModel
from .live_registry import LiveRegistry
from .loader import AdapterLoader
from .manager import AdapterManager
from .sources import SourcePolicy
from .state import StateDirectory
from .text import TextStore


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """Where adapters are kept, who formats them, who reads their text."""

    state: StateDirectory
    loader: AdapterLoader
    texts: TextStore


def build_manager(
    parts: AdapterParts,
    catalog: Catalog,
    supervisor: EngineSupervisor,
    metrics: ServerMetrics,
    policy: SourcePolicy,
    max_older: int,
) -> AdapterManager:
    """The manager, told of engines that start and of adapters that come and go."""
    info = supervisor.info
    live = LiveRegistry(catalog, EngineAdapters(supervisor, parts.state.formatted), parts.state)
    most = supervisor.stats.max_adapter_device_bytes or None
    base = BaseModel(catalog.base.root, info.dtype, info.vocab_size, most, info.adapter_dtype)
    policy = replace(policy, blobs=str(parts.state.blobs))
    intake = AdapterIntake(base, parts.loader, parts.texts, policy, metrics.adapters)
    manager = AdapterManager(live, intake, max_older)
    supervisor.on_start(manager.restart)
    supervisor.subscribe_adapters(
        lambda event: metrics.adapters.observe(event, live.source_kind(event.digest))
    )
    return manager
