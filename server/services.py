"""What the endpoints work with: one frozen bundle, put together at start-up."""

from __future__ import annotations

from dataclasses import dataclass

from .adapters import Catalog
from .config import ServeConfig
from .gate import Gate
from .generation import Generator
from .health import ProgressMonitor
from .metrics import ServerMetrics
from .prompt import PromptReader
from .sampling import SamplingContext, read_defaults
from .supervisor import EngineSupervisor
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything behind one application. ``created`` is when it came up, in Unix seconds."""

    config: ServeConfig
    catalog: Catalog
    tokenizer: Tokenizer
    prompts: PromptReader
    sampling: SamplingContext
    generator: Generator
    metrics: ServerMetrics
    supervisor: EngineSupervisor
    monitor: ProgressMonitor
    gate: Gate
    created: int


def build_services(
    config: ServeConfig,
    catalog: Catalog,
    tokenizer: Tokenizer,
    supervisor: EngineSupervisor,
    created: int,
) -> Services:
    """Wire the parts up around a started engine."""
    info, limits = supervisor.info, config.limits
    access = config.access
    tenants = [access.tenant(name) for name in access.tenant_names]
    metrics = ServerMetrics(catalog, lambda: supervisor.stats, tenants)
    use_defaults = config.generation_config == "auto"
    return Services(
        config=config,
        catalog=catalog,
        tokenizer=tokenizer,
        prompts=PromptReader(tokenizer, info.vocab_size, limits),
        sampling=SamplingContext(
            limits,
            info.vocab_size,
            info.max_model_len,
            read_defaults(catalog.base.root if use_defaults else None),
        ),
        generator=Generator(supervisor.generate, tokenizer, metrics),
        metrics=metrics,
        supervisor=supervisor,
        monitor=ProgressMonitor(supervisor, config.ready_timeout),
        gate=Gate(),
        created=created,
    )
