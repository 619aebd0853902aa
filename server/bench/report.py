"""What a load run measured: percentiles, throughput, a table for people, JSON for machines."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .load import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """One latency over all requests (or tokens) of a run, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in figures; latencies and tokens are those of the requests that succeeded.

    ``time_to_first_token`` and ``end_to_end`` are per request, ``inter_token`` per gap between
    two chunks, ``per_output_token`` per request: (end to end - first token) / (tokens - 1).
    Throughput is over ``seconds``, from the first request sent to the last one ended.
    """

    num_requests: int
    num_failed: int
    num_without_usage: int
    seconds: float
    num_input_tokens: int
    num_output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    time_to_first_token: Percentiles | None
    inter_token: Percentiles | None
    per_output_token: Percentiles | None
    end_to_end: Percentiles | None
    errors: dict[str, int]


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """All outcomes of a run, or of one model's part of it."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    start = min((outcome.started for outcome in outcomes), default=0.0)
    end = max((outcome.started + outcome.seconds for outcome in outcomes), default=0.0)
    seconds = max(end - start, 1e-9)
    num_input = sum(outcome.num_input_tokens for outcome in good)
    num_output = sum(outcome.num_output_tokens for outcome in good)
    return Summary(
        num_requests=len(outcomes),
        num_failed=len(outcomes) - len(good),
        num_without_usage=sum(not outcome.has_usage for outcome in good),
        seconds=seconds,
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        requests_per_second=len(good) / seconds,
        output_tokens_per_second=num_output / seconds,
        total_tokens_per_second=(num_input + num_output) / seconds,
        time_to_first_token=percentiles([o.first_token for o in good if o.first_token is not None]),
        inter_token=percentiles([gap for outcome in good for gap in outcome.gaps]),
        per_output_token=percentiles([t for o in good if (t := _per_token(o)) is not None]),
        end_to_end=percentiles([outcome.seconds for outcome in good]),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
    )


def _per_token(outcome: Outcome) -> float | None:
    if outcome.first_token is None or outcome.num_output_tokens < 2:
        return None
    return (outcome.seconds - outcome.first_token) / (outcome.num_output_tokens - 1)


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Mean and percentiles, interpolated between neighbours; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (_percentile(ordered, percent) for percent in PERCENTILES)
    return Percentiles(mean=sum(ordered) / len(ordered), p50=p50, p90=p90, p99=p99)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    position = percent / 100 * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def table(summary: Summary) -> str:
    """The figures for people; milliseconds."""
    rows = [
        ("requests", f"{summary.num_requests} ({summary.num_failed} failed)"),
        ("duration", f"{summary.seconds:.2f} s"),
        ("tokens in / out", f"{summary.num_input_tokens} / {summary.num_output_tokens}"),
        ("requests/s", f"{summary.requests_per_second:.2f}"),
        ("output tokens/s", f"{summary.output_tokens_per_second:.1f}"),
        ("total tokens/s", f"{summary.total_tokens_per_second:.1f}"),
    ]
    lines = [f"{name:<24}{value:>20}" for name, value in rows]
    lines += ["", f"{'latency (ms)':<24}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}"]
    lines += [
        _latency_row("time to first token", summary.time_to_first_token),
        _latency_row("inter-token", summary.inter_token),
        _latency_row("per output token", summary.per_output_token),
        _latency_row("end to end", summary.end_to_end),
    ]
    if summary.num_without_usage:
        lines += [
            "",
            f"{summary.num_without_usage} answers had no usage: their chunks were counted",
        ]
    lines += [f"failed {count} x  {error}" for error, count in summary.errors.items()]
    return "\n".join(lines)


def _latency_row(name: str, values: Percentiles | None) -> str:
    if values is None:
        return f"{name:<24}{'-':>10}"
    cells = (values.mean, values.p50, values.p90, values.p99)
    return f"{name:<24}" + "".join(f"{cell * 1000:>10.1f}" for cell in cells)


def by_model(outcomes: Sequence[Outcome]) -> dict[str, Summary]:
    """One summary a model, in the order of their names."""
    names = sorted({outcome.model for outcome in outcomes})
    return {name: summarize([o for o in outcomes if o.model == name]) for name in names}


def report(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The figures for machines: the whole run and each model's part."""
    parts = {name: asdict(summary) for name, summary in by_model(outcomes).items()}
    return {"summary": asdict(summarize(outcomes)), "by_model": parts}


def machine() -> dict[str, object]:
    """This machine, in the words of a results file."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "num_cpus": cpus,
        "python": sys.version.split()[0],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
