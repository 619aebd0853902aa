"""Prometheus metrics: vLLM's names where the meaning is equal, ours for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, generate_latest

from ..engine.types import EngineStats, GenerationRequest
from .access import Tenant
from .adapters.metrics import AdapterMetrics
from .catalog import Catalog, ServedModel
from .engine_metrics import EngineCollector, InFlight
from .errors import ApiError
from .latency_metrics import Latencies
from .model_meter import ModelMeter
from .tenant_meter import TenantMeter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """All counters of one server, in a registry of its own.

    ``model_name`` is the base model's first name on every series; ``model`` is the name a
    request came under, the adapter's or the base's: ``models`` counts by it, for some of them.
    """

    def __init__(
        self,
        catalog: Catalog,
        stats: Callable[[], EngineStats],
        tenants: Iterable[Tenant] = (),
    ) -> None:
        self.registry = CollectorRegistry()
        self._base = catalog.base.name
        self._in_flight = InFlight()
        self.latencies = Latencies(self.registry, self._base)
        self.tenants = TenantMeter(self._base, tenants)
        self._success = self._counter(
            "vllm:request_success",
            "Choices that ended, by why they did.",
            ("model_name", "finished_reason"),
        )
        self._prompts = self._tokens("prompt_tokens", "Prompt tokens of answered choices.")
        self._queries = self._tokens(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._hits = self._tokens("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.generated = self._tokens("generation_tokens", "Tokens generated.")
        self.models = ModelMeter(
            catalog.base_names,
            lambda: (*catalog.base_names, *catalog.adapter_names, *catalog.alias_names),
        )
        self.adapters = AdapterMetrics(self.registry, self._base)
        self.registry.register(EngineCollector(self._base, stats, self._in_flight))
        self.registry.register(self.tenants)
        self.registry.register(self.models)

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _tokens(self, name: str, documentation: str) -> Counter:
        return self._counter(f"vllm:{name}", documentation, ("model_name",)).labels(self._base)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def count_request(self, model: str | None, tenant: Tenant, status: int) -> None:
        """Count one HTTP request; ``model`` is a served name, None if it named none."""
        self.tenants.counts_of(tenant.name).num_requests[status] += 1
        if model is not None:
            self.models.counts_of(model).num_requests[status] += 1

    @property
    def num_in_flight(self) -> int:
        """Requests being generated now."""
        return self._in_flight.total()

    @contextmanager
    def in_flight(self, model: ServedModel, tenant: Tenant) -> Iterator[None]:
        """Mark a request of ``tenant`` to ``model`` as being generated."""
        with self._in_flight.mark(model.name, model.digest), self.tenants.in_flight(tenant):
            yield

    def time_choice(self, model: str, generation: GenerationRequest, arrival: float) -> ChoiceTimer:
        """A clock for one choice of a request that arrived at ``arrival`` (perf_counter)."""
        return ChoiceTimer(self, model, generation, arrival)

    def count_prompt(self, model: str, generation: GenerationRequest, num_cached: int) -> None:
        """A choice has its prompt behind it, ``num_cached`` tokens out of the cache."""
        num_prompt_tokens = len(generation.prompt_token_ids)
        self._prompts.inc(num_prompt_tokens)
        self._queries.inc(num_prompt_tokens)
        self._hits.inc(num_cached)
        for counts in (self.models.counts_of(model), self.tenants.counts_of(generation.tenant)):
            counts.num_prompt_tokens += num_prompt_tokens
            counts.num_cached_tokens += num_cached

    def ended(self, reason: str, seconds: float) -> None:
        """A choice ended, one way or another."""
        self._success.labels(self._base, reason).inc()
        if reason in ("stop", "length"):
            self.latencies.whole.observe(seconds)


class ChoiceTimer:
    """Times one choice; as a context it counts an early leave as ``abort`` or ``error``.

    What the engine refuses (a 4xx) is not counted: it did not begin.
    """

    def __init__(
        self, metrics: ServerMetrics, model: str, generation: GenerationRequest, arrival: float
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._generation = generation
        self._arrival = arrival
        self._last: float | None = None
        self._counts = (
            metrics.models.counts_of(model),
            metrics.tenants.counts_of(generation.tenant),
        )
        self._reason: str | None = None

    def tokens(self, num_tokens: int, num_cached_tokens: int) -> None:
        """Tokens have arrived; ``num_cached_tokens`` is read with the first ones."""
        now = time.perf_counter()
        if self._last is None:
            self._metrics.latencies.first_token.observe(now - self._arrival)
            self._metrics.count_prompt(self._model, self._generation, num_cached_tokens)
        else:
            self._metrics.latencies.between_tokens.observe(now - self._last)
        self._last = now
        self._metrics.generated.inc(num_tokens)
        for counts in self._counts:
            counts.num_generation_tokens += num_tokens

    def queued(self, seconds: float) -> None:
        """The choice has left the engine's queue."""
        self._metrics.latencies.queue.observe(seconds)

    def finish(self, reason: str) -> None:
        """The choice has its finish reason."""
        self._reason = reason

    def __enter__(self) -> ChoiceTimer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *rest: object
    ) -> None:
        if isinstance(error, ApiError) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return
        failed = kind is not None and issubclass(kind, Exception)
        reason = self._reason or ("error" if failed else "abort")
        self._metrics.ended(reason, time.perf_counter() - self._arrival)
