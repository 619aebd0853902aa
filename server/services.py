"""What the endpoints work with: one frozen bundle, put together at start-up."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from ..gateway.fleet.tracing import Tracer
from .adapters.manager import AdapterManager
from .adapters.parts import AdapterParts, build_manager
from .adapters.sources import SourcePolicy
from .catalog import Catalog
from .choice_trace import ChoiceTracing
from .config import Limits, ServeConfig
from .fleet.keys import PrefixKeys
from .fleet.keys_choices import build_prefix_keys
from .fleet.options import ReplicaIdentity
from .fleet.replica import FleetReplica, ReplicaParts, build_replica
from .gate import Gate
from .generation import Generator
from .health import ProgressMonitor
from .metrics import ServerMetrics
from .output_plan import ChatOutputs
from .prompt import PromptReader
from .responses.metrics import KeptCollector
from .responses.open_store import open_store
from .responses.store import ResponseStore
from .sampling import SamplingContext, read_defaults
from .structured.checks import GrammarChecks
from .supervisor import EngineSupervisor
from .text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything behind one application.

    ``created`` is when it came up, in Unix seconds. ``fingerprint`` is of all that decides what
    the base model says here. ``epoch`` is drawn at each start. ``replica`` is what
    it has as a part of a fleet.
    """

    config: ServeConfig
    catalog: Catalog
    adapters: AdapterManager
    source_policy: SourcePolicy
    tokenizer: Tokenizer
    prompts: PromptReader
    sampling: SamplingContext
    generator: Generator
    outputs: ChatOutputs
    grammars: GrammarChecks
    metrics: ServerMetrics
    supervisor: EngineSupervisor
    monitor: ProgressMonitor
    gate: Gate
    created: int
    responses: ResponseStore
    fingerprint: str = ""
    tracer: Tracer | None = None
    epoch: str = ""
    prefix_keys: PrefixKeys | None = None
    replica: FleetReplica | None = None


def _limits_of(config: ServeConfig, num_seats: int) -> Limits:
    """The limits of a request, whose choices must find room beside each other.

    More of them than all seats and the queue hold would hear 429 however often they come.
    """
    engine, limits = config.engine, config.limits
    if engine.max_queued_requests is None:
        return limits
    room = num_seats + engine.max_queued_requests
    return replace(
        limits,
        max_choices=min(limits.max_choices, room),
        max_sequences=min(limits.max_sequences, room),
    )


def build_services(
    config: ServeConfig,
    catalog: Catalog,
    tokenizer: Tokenizer,
    supervisor: EngineSupervisor,
    parts: AdapterParts,
    created: int,
    fingerprint: str = "",
    tracer: Tracer | None = None,
) -> Services:
    """Wire the parts up around a started engine."""
    info = supervisor.info
    limits = _limits_of(config, info.max_num_seqs)
    access = config.access
    tenants = [access.tenant(name) for name in access.tenant_names]
    metrics = ServerMetrics(catalog, lambda: supervisor.stats, tenants)
    responses = open_store(config)
    metrics.registry.register(KeptCollector(catalog.base.name, responses))
    epoch = uuid.uuid4().hex
    grammars = GrammarChecks()
    return Services(
        config=config,
        catalog=catalog,
        adapters=build_manager(
            parts, catalog, supervisor, metrics, config.sources, config.adapter_versions_kept
        ),
        source_policy=config.sources,
        tokenizer=tokenizer,
        prompts=PromptReader(tokenizer, info.vocab_size, limits, parts.texts.templates),
        sampling=_sampling_context(config, catalog, supervisor, limits, tokenizer),
        generator=Generator(
            supervisor.generate,
            tokenizer,
            metrics,
            _tracing(tracer, supervisor),
            grammars.vocabularies,
        ),
        outputs=ChatOutputs(config, limits),
        grammars=grammars,
        metrics=metrics,
        supervisor=supervisor,
        monitor=ProgressMonitor(supervisor, config.ready_timeout),
        gate=Gate(),
        created=created,
        responses=responses,
        fingerprint=fingerprint,
        tracer=tracer,
        epoch=epoch,
        prefix_keys=build_prefix_keys(config, supervisor, epoch),
    )


def _sampling_context(
    config: ServeConfig,
    catalog: Catalog,
    supervisor: EngineSupervisor,
    limits: Limits,
    tokenizer: Tokenizer,
) -> SamplingContext:
    info, use_defaults = supervisor.info, config.generation_config == "auto"
    return SamplingContext(
        limits,
        info.vocab_size,
        info.max_model_len,
        read_defaults(catalog.base.root if use_defaults else None),
        tokenizer=tokenizer,
    )


def _tracing(tracer: Tracer | None, supervisor: EngineSupervisor) -> ChoiceTracing | None:
    return None if tracer is None else ChoiceTracing(tracer, lambda: supervisor.stats.num_steps)


def with_replica(services: Services, identity: ReplicaIdentity, blobs: Path) -> Services:
    """The same with what a fleet needs, where there is a fleet's secret."""
    parts = ReplicaParts(
        config=services.config,
        identity=identity,
        catalog=services.catalog,
        manager=services.adapters,
        supervisor=services.supervisor,
        gate=services.gate,
        blobs=blobs,
        fingerprint=services.fingerprint,
        epoch=services.epoch,
        keys=services.prefix_keys,
    )
    return replace(services, replica=build_replica(parts))
