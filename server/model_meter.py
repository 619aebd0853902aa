"""Counts by the name that requests came under; a bounded number of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_LABELS = 200
OTHER = "other"

_SERIES = {
    "prompt_tokens": ("num_prompt_tokens", "Prompt tokens of answered choices."),
    "prefix_cache_queries": (
        "num_prompt_tokens",
        "Prompt tokens looked up in the prefix cache.",
    ),
    "prefix_cache_hits": ("num_cached_tokens", "Prompt tokens found in the prefix cache."),
    "generation_tokens": ("num_generation_tokens", "Tokens generated."),
}


@dataclass(slots=True)
class ModelCounts:
    """One name so far; tokens are summed over choices, each with its whole prompt."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    num_requests: Counter[int] = field(default_factory=Counter)


class ModelMeter(Collector):
    """Counts by name: the base's names, and the first ``max_labels`` others that are asked for.

    All further ones are counted together, as ``other``. ``served`` gives the names there are now:
    the series of one that is there no more go with the next scrape, and another name gets the
    place. What is ``other`` by then stays that.
    """

    def __init__(
        self,
        base_names: Collection[str],
        served: Callable[[], Iterable[str]],
        max_labels: int = MAX_LABELS,
    ) -> None:
        self._model_name, *_ = base_names
        self._served = served
        self._max_labels = max_labels + len(base_names)
        self._counts = {name: ModelCounts() for name in base_names}
        self._other = self._counts.get(OTHER)

    def counts_of(self, name: str) -> ModelCounts:
        """What is counted for a name, to be added to."""
        counts = self._counts.get(name)
        if counts is None and len(self._counts) < self._max_labels and name != OTHER:
            counts = self._counts[name] = ModelCounts()
        if counts is None:
            counts = self._other = self._other or ModelCounts()
        return counts

    def collect(self) -> Iterable[Metric]:
        """The counters by name."""
        self._forget_removed()
        labels = ["model_name", "model"]
        requests = CounterMetricFamily(
            "branchline:requests",
            "HTTP requests for a served model, by model and status.",
            labels=[*labels, "status"],
        )
        tokens = {
            name: CounterMetricFamily(f"branchline:model_{name}", documentation, labels=labels)
            for name, (_, documentation) in _SERIES.items()
        }
        for model, counts in self._rows().items():
            series = [self._model_name, model]
            for status, number in counts.num_requests.items():
                requests.add_metric([*series, str(status)], number)
            for name, family in tokens.items():
                family.add_metric(series, getattr(counts, _SERIES[name][0]))
        return [requests, *tokens.values()]

    def _forget_removed(self) -> None:
        for name in self._counts.keys() - set(self._served()):
            del self._counts[name]

    def _rows(self) -> dict[str, ModelCounts]:
        return self._counts if self._other is None else {**self._counts, OTHER: self._other}
