"""What one simulated run comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from .replica import Served
from .simulation import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Shares of prompt tokens and of requests; times to the first token in seconds.

    ``cold_share`` found its adapter neither on the device nor in host memory, ``off_device_share``
    not on the device. ``imbalance`` is the prompt tokens that the busiest replica computed over
    the mean.
    """

    hit_rate: float
    mean_ttft: float
    p50_ttft: float
    p99_ttft: float
    cold_share: float
    off_device_share: float
    imbalance: float

    def line(self) -> str:
        """For people."""
        return (
            f"hits {self.hit_rate:6.1%}   TTFT mean {self.mean_ttft:6.3f}  p50 {self.p50_ttft:6.3f}"
            f"  p99 {self.p99_ttft:7.3f}   cold {self.cold_share:6.1%}"
            f"   not on device {self.off_device_share:6.1%}   imbalance {self.imbalance:.2f}"
        )


def figures_of(run: Run) -> Figures:
    """Over all requests."""
    served = run.served
    times = sorted(one.first_token_at - one.request.at for one in served)
    return Figures(
        hit_rate=sum(one.num_cached for one in served)
        / sum(one.request.num_prompt_tokens for one in served),
        mean_ttft=mean(times),
        p50_ttft=_quantile(times, 0.50),
        p99_ttft=_quantile(times, 0.99),
        cold_share=_share(served, ("disk",)),
        off_device_share=_share(served, ("disk", "host")),
        imbalance=max(run.num_computed_tokens) / mean(run.num_computed_tokens),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _share(served: Sequence[Served], tiers: Sequence[str]) -> float:
    return sum(one.tier in tiers for one in served) / len(served)
