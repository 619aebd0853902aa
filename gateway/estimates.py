"""How many tokens a request will take, from its text's length: learned for each model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .body import ModelRequest
from .endpoints import Charges
from .types import Estimate

DEFAULT_COMPLETION_TOKENS = 16
NO_TOKENS = Estimate(num_input_tokens=0, num_output_tokens=0)
MAX_MODELS = 4096
NUM_SAMPLES_NEEDED = 8

# Beside its text: what a chat template puts around each message and in front of all.
TOKENS_PER_MESSAGE = 16
TOKENS_PER_PROMPT = 64

_SMOOTHING = 0.05
_LOW_DRIFT = 0.01
_MOST_FALL = 2.0
_MARGIN = 0.75
_USUAL_BYTES = 4.0


@dataclass(slots=True)
class _Ratio:
    """Bytes of text a token: the mean, and the least of late."""

    mean: float
    low: float
    num_samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSize:
    """What counts of a prompt: token ids are exact, text is bytes.

    ``num_dense_bytes`` of them are no ASCII letters and spaces: digits, signs and other scripts,
    which may take a token each whatever a model's usual ratio is.
    """

    num_bytes: int = 0
    num_dense_bytes: int = 0
    num_messages: int = 0
    num_token_ids: int = 0


class TokenEstimates:
    """Bytes per token by model, the most recent ``MAX_MODELS``."""

    def __init__(self) -> None:
        self._ratios: dict[str, _Ratio] = {}

    def learn(self, model: str, size: PromptSize, num_prompt_tokens: int) -> None:
        """A replica counted a prompt; a count of more than it can have is of something else."""
        if size.num_token_ids or size.num_bytes < 64 or num_prompt_tokens < 1:
            return
        if num_prompt_tokens > size.num_bytes + _around(size):
            return
        ratio = size.num_bytes / num_prompt_tokens
        known = self._ratios.pop(model, None) or _Ratio(ratio, ratio)
        known.mean += _SMOOTHING * (ratio - known.mean)
        lowest = max(ratio, known.low / _MOST_FALL)
        known.low = min(lowest, known.low + _LOW_DRIFT * (known.mean - known.low))
        known.num_samples += 1
        self._ratios[model] = known
        if len(self._ratios) > MAX_MODELS:
            del self._ratios[next(iter(self._ratios))]

    def likely(self, model: str, size: PromptSize) -> int:
        """About how many tokens the prompt has, at least 1; for routing."""
        known = self._ratios.get(model)
        ratio = known.mean if known else _USUAL_BYTES
        return size.num_token_ids + max(1, round(size.num_bytes / ratio))

    def at_most(self, model: str, size: PromptSize) -> int:
        """An upper bound; a byte a token, until enough prompts were counted."""
        known = self._ratios.get(model)
        is_known = known is not None and known.num_samples >= NUM_SAMPLES_NEEDED
        ratio = max(known.low * _MARGIN, 0.25) if known is not None and is_known else 1.0
        usual = math.ceil((size.num_bytes - size.num_dense_bytes) / ratio)
        return size.num_token_ids + size.num_dense_bytes + usual + _around(size)

    def estimate(
        self,
        model: str,
        request: ModelRequest,
        size: PromptSize,
        max_model_len: int,
        charges: Charges = "answer",
    ) -> Estimate:
        """What limits reserve: never more than the context holds."""
        if charges == "request":
            return NO_TOKENS
        rest = max(1, max_model_len - self.likely(model, size) // request.num_prompts)
        asked = request.max_completion_tokens or request.max_tokens
        if asked is None:
            asked = DEFAULT_COMPLETION_TOKENS if request.messages is None else rest
        num_answers = request.num_answers if charges == "answer" else 0
        return Estimate(
            num_input_tokens=min(self.at_most(model, size), max_model_len * request.num_prompts),
            num_output_tokens=min(asked, max_model_len) * num_answers,
        )


def _around(size: PromptSize) -> int:
    return TOKENS_PER_MESSAGE * size.num_messages + TOKENS_PER_PROMPT
