"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..engine.types import TokenLogprobs
from .text.tokenizer import Tokenizer
from .wire import ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, TopLogprob

# JSON has no infinities; a token that can't be chosen gets what OpenAI gives it.
LEAST_LOGPROB = -9999.0


def chat_logprobs(
    tokenizer: Tokenizer, positions: Sequence[TokenLogprobs], num_top: int
) -> ChatLogprobs:
    """One entry a token: its text, its bytes and the ``num_top`` likeliest in its place."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                *_token(tokenizer, position.token_id, position.logprob),
                [
                    TopLogprob(*_token(tokenizer, token_id, logprob))
                    for token_id, logprob in _top(position, num_top)
                ],
            )
            for position in positions
        ]
    )


def completion_logprobs(
    tokenizer: Tokenizer, positions: Sequence[TokenLogprobs], num_top: int, text_offset: int
) -> CompletionLogprobs:
    """Four parallel lists; ``text_offset`` counts the characters before the first token."""
    tokens: list[str] = []
    offsets: list[int] = []
    for position in positions:
        tokens.append(_text(tokenizer.token_bytes(position.token_id)))
        offsets.append(text_offset)
        text_offset += len(tokens[-1])
    return CompletionLogprobs(
        tokens,
        [max(position.logprob, LEAST_LOGPROB) for position in positions],
        [_top_texts(tokenizer, position, num_top) for position in positions] if num_top else None,
        offsets,
    )


def num_offset_characters(tokenizer: Tokenizer, token_ids: Iterable[int]) -> int:
    """By how much these tokens move ``text_offset`` on."""
    return sum(len(_text(tokenizer.token_bytes(token_id))) for token_id in token_ids)


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
    raw = tokenizer.token_bytes(token_id)
    return _text(raw), max(logprob, LEAST_LOGPROB), list(raw)


def _top_texts(tokenizer: Tokenizer, position: TokenLogprobs, num_top: int) -> dict[str, float]:
    """Likeliest first, then the chosen token if it is not among them.

    Tokens that are parts of characters can share a text: the likeliest keeps it.
    """
    chosen = (position.token_id, position.logprob)
    texts: dict[str, float] = {}
    for token_id, logprob in (*_top(position, num_top), chosen):
        texts.setdefault(_text(tokenizer.token_bytes(token_id)), max(logprob, LEAST_LOGPROB))
    return texts


def _top(position: TokenLogprobs, num_top: int) -> list[tuple[int, float]]:
    pairs = zip(position.top_token_ids, position.top_logprobs, strict=True)
    return list(pairs)[:num_top]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
