"""Prometheus metrics: vLLM's names where the meaning is equal, ours for the rest."""

from __future__ import annotations

import time
from collections import Counter as TallyCounter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from ..engine.types import EngineStats
from .adapters import Catalog
from .engine_metrics import EngineCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class ServerMetrics:
    """All counters of one server, in a registry of its own.

    ``model_name`` is the base model's first name on every series; ``model`` is the name a
    request came under, the adapter's or the base's.
    """

    def __init__(self, catalog: Catalog, stats: Callable[[], EngineStats]) -> None:
        self.registry = CollectorRegistry()
        self._base = catalog.base.name
        self._in_flight: TallyCounter[str] = TallyCounter()
        base = ("model_name",)
        by_model = ("model_name", "model")
        self._success = self._counter(
            "vllm:request_success",
            "Choices that ended, by why they did.",
            ("model_name", "finished_reason"),
        )
        self._prompt_tokens = self._counter(
            "vllm:prompt_tokens", "Prompt tokens of requests that got an answer.", base
        )
        self._generation_tokens = self._counter(
            "vllm:generation_tokens", "Tokens generated for requests.", base
        )
        self._cache_queries = self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", base
        )
        self._cache_hits = self._counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", base
        )
        self._requests = self._counter(
            "branchline:requests",
            "HTTP requests for a served model, by model and status.",
            (*by_model, "status"),
        )
        self._model_prompt_tokens = self._counter(
            "branchline:model_prompt_tokens", "Prompt tokens by model.", by_model
        )
        self._model_generation_tokens = self._counter(
            "branchline:model_generation_tokens", "Generated tokens by model.", by_model
        )
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS
        )
        self._itl = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of one choice.", _ITL_BUCKETS
        )
        self._queue_time = self._histogram(
            "vllm:request_queue_time_seconds",
            "From the engine's taking a request in to its first step.",
            _REQUEST_BUCKETS,
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_BUCKETS
        )
        self.registry.register(EngineCollector(catalog, stats, self._in_flight))

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            name, documentation, ("model_name",), registry=self.registry, buckets=buckets
        )
        histogram = family.labels(self._base)
        assert isinstance(histogram, Histogram)
        return histogram

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def count_request(self, model: str, status: int) -> None:
        """Count one HTTP request; ``model`` is a served name."""
        self._requests.labels(self._base, model, str(status)).inc()

    @property
    def num_in_flight(self) -> int:
        """Requests being generated now."""
        return self._in_flight.total()

    @contextmanager
    def in_flight(self, model: str) -> Iterator[None]:
        """Mark a request under ``model`` as being generated."""
        self._in_flight[model] += 1
        try:
            yield
        finally:
            self._in_flight[model] -= 1

    def time_choice(self, model: str, num_prompt_tokens: int, arrival: float) -> ChoiceTimer:
        """A clock for one choice of a request that arrived at ``arrival`` (perf_counter)."""
        return ChoiceTimer(self, model, num_prompt_tokens, arrival)

    def first_token(
        self, model: str, seconds: float, num_prompt_tokens: int, num_cached_tokens: int
    ) -> None:
        """A choice got its first token."""
        self._ttft.observe(seconds)
        self._prompt_tokens.labels(self._base).inc(num_prompt_tokens)
        self._model_prompt_tokens.labels(self._base, model).inc(num_prompt_tokens)
        self._cache_queries.labels(self._base).inc(num_prompt_tokens)
        self._cache_hits.labels(self._base).inc(num_cached_tokens)

    def left_queue(self, seconds: float) -> None:
        """A choice had waited so long in the engine when its first step began."""
        self._queue_time.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A choice got another token, so long after the one before."""
        self._itl.observe(seconds)

    def generation_counters(self, model: str) -> tuple[Counter, Counter]:
        """The two counters of tokens generated under ``model``."""
        by_model = self._model_generation_tokens.labels(self._base, model)
        return self._generation_tokens.labels(self._base), by_model

    def ended(self, reason: str, seconds: float) -> None:
        """A choice ended, one way or another."""
        self._success.labels(self._base, reason).inc()
        if reason in ("stop", "length"):
            self._e2e.observe(seconds)


class ChoiceTimer:
    """Times one choice; as a context it counts an early leave as ``abort`` or ``error``."""

    def __init__(
        self, metrics: ServerMetrics, model: str, num_prompt_tokens: int, arrival: float
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._arrival = arrival
        self._last: float | None = None
        self._counters = metrics.generation_counters(model)
        self._reason: str | None = None

    def tokens(self, num_tokens: int, num_cached_tokens: int) -> None:
        """Tokens have arrived."""
        now = time.perf_counter()
        if self._last is None:
            self._metrics.first_token(
                self._model, now - self._arrival, self._num_prompt_tokens, num_cached_tokens
            )
        else:
            self._metrics.next_token(now - self._last)
        self._last = now
        for counter in self._counters:
            counter.inc(num_tokens)

    def queued(self, seconds: float) -> None:
        """The choice has left the engine's queue."""
        self._metrics.left_queue(seconds)

    def finish(self, reason: str) -> None:
        """The choice has its finish reason."""
        self._reason = reason

    def __enter__(self) -> ChoiceTimer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        reason = self._reason or ("error" if failed else "abort")
        seconds = time.perf_counter() - self._arrival
        self._metrics.ended(reason, seconds)
