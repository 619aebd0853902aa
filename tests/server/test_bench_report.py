"""Figures of a run: percentiles, throughput, what a failed request does to them."""

from __future__ import annotations

import pytest

from branchline.server.bench.load import Outcome
from branchline.server.bench.report import by_model, machine, percentiles, report, summarize, table


def outcome(model: str = "base", started: float = 0.0, **given: object) -> Outcome:
    values: dict[str, object] = {
        "seconds": 1.0,
        "first_token": 0.2,
        "gaps": [0.1] * 8,
        "num_input_tokens": 10,
        "num_output_tokens": 9,
        "has_usage": True,
    }
    return Outcome(model=model, started=started, **(values | given))  # type: ignore[arg-type]


def test_percentiles_interpolate_between_neighbours() -> None:
    values = percentiles([4.0, 1.0, 3.0, 2.0, 5.0])
    assert values is not None
    assert (values.mean, values.p50) == (3.0, 3.0)
    assert values.p90 == pytest.approx(4.6)
    assert values.p99 == pytest.approx(4.96)


def test_percentiles_of_one_value_and_of_none() -> None:
    one = percentiles([2.5])
    assert one is not None
    assert {one.mean, one.p50, one.p90, one.p99} == {2.5}
    assert percentiles([]) is None


def test_throughput_is_over_the_first_start_to_the_last_end() -> None:
    summary = summarize([outcome(started=0.5), outcome(started=3.5)])
    assert summary.seconds == pytest.approx(4.0)
    assert summary.output_tokens_per_second == pytest.approx(18 / 4)
    assert summary.total_tokens_per_second == pytest.approx(38 / 4)
    assert summary.requests_per_second == pytest.approx(0.5)


def test_time_per_output_token_leaves_the_first_one_out() -> None:
    summary = summarize([outcome(), outcome(num_output_tokens=1, gaps=[])])
    assert summary.per_output_token is not None
    assert summary.per_output_token.mean == pytest.approx(0.8 / 8)


def test_failed_requests_are_counted_and_leave_the_figures_alone() -> None:
    broken = outcome(seconds=9.0, first_token=8.0, error="HTTP 500: no")
    summary = summarize([outcome(), broken, broken])
    assert (summary.num_requests, summary.num_failed) == (3, 2)
    assert summary.errors == {"HTTP 500: no": 2}
    assert summary.num_output_tokens == 9
    assert summary.time_to_first_token is not None
    assert summary.time_to_first_token.p99 == pytest.approx(0.2)
    assert "failed 2 x  HTTP 500: no" in table(summary)


def test_a_run_where_all_failed_still_has_a_table() -> None:
    summary = summarize([outcome(error="ConnectError", first_token=None)])
    assert summary.end_to_end is None
    assert summary.output_tokens_per_second == 0
    assert "1 (1 failed)" in table(summary)


def test_answers_without_usage_are_told_apart() -> None:
    summary = summarize([outcome(has_usage=False), outcome()])
    assert summary.num_without_usage == 1
    assert "1 answers had no usage" in table(summary)


def test_each_model_has_its_own_figures() -> None:
    outcomes = [outcome("a"), outcome("b", seconds=3.0), outcome("a")]
    parts = by_model(outcomes)
    assert {name: part.num_requests for name, part in parts.items()} == {"a": 2, "b": 1}
    assert list(report(outcomes)) == ["summary", "by_model"]


def test_the_machine_is_described() -> None:
    facts = machine()
    assert facts["processor"]
    assert isinstance(facts["num_cpus"], int)
