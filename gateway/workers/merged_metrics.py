"""The metrics of several workers as one text, each sample with its worker as a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "worker"
_PREFIX = "branchline_gateway_workers"


def merge(texts: Mapping[int, bytes], num_workers: int) -> bytes:
    """One exposition text of those by worker; each family is in it once.

    It also tells how many workers there should be, and how many of them gave their text.
    """
    registry = CollectorRegistry()
    registry.register(_Families(texts, num_workers))
    return generate_latest(registry)


class _Families(Collector):
    """Read once, by ``merge``."""

    def __init__(self, texts: Mapping[int, bytes], num_workers: int) -> None:
        self._texts, self._num_workers = texts, num_workers

    def collect(self) -> Iterable[Metric]:
        """Those of all workers, and how many there are of these."""
        families: dict[str, Metric] = {}
        for number, text in sorted(self._texts.items()):
            for one in text_string_to_metric_families(text.decode()):
                family = families.setdefault(
                    one.name, Metric(one.name, one.documentation, one.type)
                )
                family.samples += [
                    sample._replace(labels={**sample.labels, LABEL: str(number)})
                    for sample in one.samples
                ]
        num_up = len(self._texts)
        yield GaugeMetricFamily(_PREFIX, "Processes of this gateway.", value=self._num_workers)
        yield GaugeMetricFamily(f"{_PREFIX}_up", "Those that told their metrics.", value=num_up)
        yield from families.values()
