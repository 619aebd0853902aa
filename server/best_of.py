"""``best_of``: of several answers to a prompt, those that the model itself finds likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from .answer import Answer, ChoiceText


def best_choices(answer: Answer, texts: Sequence[ChoiceText], n: int) -> list[int]:
    """Indexes of the ``n`` best choices of each prompt, prompt by prompt, best first.

    Best by the mean of their tokens' logprobs, as in OpenAI's API; the first of equal ones.
    """
    best: list[int] = []
    for _, choices in groupby(answer.choices, key=lambda choice: choice.prompt_index):
        indexes = [choice.index for choice in choices]
        best += sorted(indexes, key=lambda index: -_mean_logprob(texts[index]))[:n]
    return best


def _mean_logprob(text: ChoiceText) -> float:
    logprobs = [position.logprob for position in text.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf
