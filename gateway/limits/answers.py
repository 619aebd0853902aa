"""How a verdict reads in HTTP: the headers that OpenAI names, and its error."""

from __future__ import annotations

import math

from ..errors import GatewayError
from .limits import LIMIT_NAMES
from .windows import Verdict

_HEADER_NAMES = ("requests", "input-tokens", "output-tokens")
_BUDGET = LIMIT_NAMES.index("budget_tokens_per_day")

LimitValues = tuple[int | None, ...]
"""In the order of ``LIMIT_NAMES``."""


def rate_headers(verdict: Verdict, limits: LimitValues) -> dict[str, str]:
    """``x-ratelimit-limit-*``, ``-remaining-*`` and ``-reset-*`` of what is limited by the minute.

    ``-tokens`` repeats the kind of tokens of which the smaller part remains.
    """
    headers: dict[str, str] = {}
    scarcest = (math.inf, "", 0, 0)
    reset = duration(verdict.reset)
    for k, name in enumerate(_HEADER_NAMES):
        limit = limits[k]
        if limit is None:
            continue
        left = max(0, limit - verdict.used[k])
        _add(headers, name, limit, left, reset)
        if k > 0:
            scarcest = min(scarcest, (left / max(limit, 1), name, limit, left))
    if scarcest[1]:
        _add(headers, "tokens", scarcest[2], scarcest[3], reset)
    return headers


def refusal(verdict: Verdict, limits: LimitValues, tokens: tuple[int, int]) -> GatewayError:
    """429: which limit, what is used of it, and when to come again."""
    index = verdict.refused_by
    assert index is not None, "only a refusing verdict has a refusal"
    seconds = max(1, -(-verdict.wait // 1000))
    name, limit, used = LIMIT_NAMES[index], limits[index], verdict.used[index]
    headers = rate_headers(verdict, limits) | {"retry-after": str(seconds)}
    if index == _BUDGET:
        message = f"The day's budget is used up: {name} is {limit}, used or reserved are {used}. "
        message += "It begins anew at midnight UTC."
        return GatewayError(429, message, code="insufficient_quota", headers=headers)
    wanted = ("", *(f", this request may need {count}" for count in tokens), "", "")[index]
    message = f"Rate limit reached: {name} is {limit}, used or reserved are {used}{wanted}. "
    message += f"Try again in {seconds} s."
    return GatewayError(429, message, code="rate_limit_exceeded", headers=headers)


def duration(milliseconds: int) -> str:
    """As OpenAI's headers say it: ``1m0.5s``, ``12s``, ``6ms``."""
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _add(headers: dict[str, str], name: str, limit: int, left: int, reset: str) -> None:
    headers[f"x-ratelimit-limit-{name}"] = str(limit)
    headers[f"x-ratelimit-remaining-{name}"] = str(left)
    headers[f"x-ratelimit-reset-{name}"] = reset
