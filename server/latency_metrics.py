"""The latency histograms, under vLLM's names and with its buckets."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

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


class Latencies:
    """Four histograms over choices, in seconds."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._model_name = model_name
        self.first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS
        )
        self.between_tokens = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of one choice.", _ITL_BUCKETS
        )
        self.queue = self._histogram(
            "vllm:request_queue_time_seconds",
            "From the engine's taking a request in to its first step.",
            _REQUEST_BUCKETS,
        )
        self.whole = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_BUCKETS
        )

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            name, documentation, ("model_name",), registry=self._registry, buckets=buckets
        )
        histogram = family.labels(self._model_name)
        assert isinstance(histogram, Histogram)
        return histogram
