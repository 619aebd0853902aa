"""Headers and errors as clients of OpenAI's API know them."""

from __future__ import annotations

import pytest

from branchline.gateway.limits.answers import duration, rate_headers, refusal
from branchline.gateway.limits.limits import Limits
from branchline.gateway.limits.windows import Verdict

LIMITS = Limits(
    requests_per_minute=60, input_tokens_per_minute=1000, output_tokens_per_minute=100
).in_order


def verdict(refused_by: int | None = None, wait: int = 0) -> Verdict:
    used = (10, 900, 50, 3, 950)
    return Verdict(refused_by=refused_by, wait=wait, now=0, second=0, used=used, reset=60_500)


def test_each_limit_has_its_headers() -> None:
    assert rate_headers(verdict(), LIMITS) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "50",
        "x-ratelimit-reset-requests": "1m0.5s",
        "x-ratelimit-limit-input-tokens": "1000",
        "x-ratelimit-remaining-input-tokens": "100",
        "x-ratelimit-reset-input-tokens": "1m0.5s",
        "x-ratelimit-limit-output-tokens": "100",
        "x-ratelimit-remaining-output-tokens": "50",
        "x-ratelimit-reset-output-tokens": "1m0.5s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "1m0.5s",
    }


def test_what_is_not_limited_has_none() -> None:
    assert rate_headers(verdict(), Limits(max_in_flight=5).in_order) == {}


def test_what_is_overdrawn_has_nothing_left() -> None:
    limits = Limits(input_tokens_per_minute=800).in_order
    assert rate_headers(verdict(), limits)["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(("wait", "seconds"), [(1, "1"), (1000, "1"), (1001, "2"), (60_999, "61")])
def test_retry_after_is_whole_seconds_and_never_too_early(wait: int, seconds: str) -> None:
    error = refusal(verdict(1, wait), LIMITS, (200, 20))
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.detail["type"] == "rate_limit_error"
    assert error.headers["retry-after"] == seconds
    assert error.headers["x-ratelimit-remaining-input-tokens"] == "100"


def test_the_message_names_the_limit_and_what_is_used() -> None:
    assert refusal(verdict(1, 3000), LIMITS, (200, 20)).message == (
        "Rate limit reached: input_tokens_per_minute is 1000, used or reserved are 900, "
        "this request may need 200. Try again in 3 s."
    )
    assert refusal(verdict(3, 1000), Limits(max_in_flight=3).in_order, (2, 2)).message == (
        "Rate limit reached: max_in_flight is 3, used or reserved are 3. Try again in 1 s."
    )


def test_a_budget_is_a_quota() -> None:
    error = refusal(verdict(4, 7_200_000), Limits(budget_tokens_per_day=900).in_order, (1, 1))
    assert error.code == "insufficient_quota"
    assert "budget_tokens_per_day is 900" in error.message
    assert error.headers == {"retry-after": "7200"}


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0s"), (6, "6ms"), (1000, "1s"), (12_340, "12.34s"), (60_000, "1m0s"), (61_500, "1m1.5s")],
)
def test_durations_read_as_openais(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text
