"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from msgspec import UNSET, Raw, UnsetType

from ..engine.types import TokenLogprobs
from .text.detokenizer import TextStream
from .text.tokenizer import Tokenizer
from .wire import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
    encode,
)

# JSON has no infinities; a token that can't be chosen gets what OpenAI gives it.
LEAST_LOGPROB = -9999.0

POSITIONS_AT_ONCE = 64
"""Prompt positions that are objects at one time, before they are JSON."""


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
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    positions: Sequence[TokenLogprobs | None],
    num_top: int,
    offsets: Sequence[int],
) -> CompletionLogprobs:
    """Four parallel lists; ``offsets`` are where in the choice's text each token begins.

    The first token of a prompt has no position.
    """
    return CompletionLogprobs(
        [_text(tokenizer.token_bytes(token_id)) for token_id in token_ids],
        [None if one is None else max(one.logprob, LEAST_LOGPROB) for one in positions],
        [None if one is None else _top_texts(tokenizer, one, num_top) for one in positions]
        if num_top
        else None,
        list(offsets),
    )


def prompt_logprobs(
    tokenizer: Tokenizer, positions: Sequence[TokenLogprobs | None] | None, num_top: int | None
) -> PromptLogprobs | UnsetType:
    """vLLM's shape: the ``num_top`` likeliest at each position, and the prompt's own token."""
    if positions is None or num_top is None:
        return UNSET
    pieces = []
    for start in range(0, len(positions), POSITIONS_AT_ONCE):
        piece: PromptLogprobs = [
            None if one is None else _prompt_position(tokenizer, one, num_top)
            for one in positions[start : start + POSITIONS_AT_ONCE]
        ]
        pieces.append(encode(piece)[1:-1])
    # Written out already: as objects they take several times the room.
    return cast("PromptLogprobs", Raw(b"[" + b",".join(pieces) + b"]"))


def _prompt_position(
    tokenizer: Tokenizer, position: TokenLogprobs, num_top: int
) -> dict[str, PromptLogprob]:
    entries = {position.token_id: (position.logprob, position.rank)}
    for rank, (token_id, logprob) in enumerate(_top(position, num_top), 1):
        entries.setdefault(token_id, (logprob, rank))
    return {
        str(token_id): PromptLogprob(
            max(logprob, LEAST_LOGPROB), rank, _text(tokenizer.token_bytes(token_id))
        )
        for token_id, (logprob, rank) in entries.items()
    }


class TextOffsets:
    """Where in a text each token begins, counted in characters, as the tokens come.

    ``text`` is the stream that the text itself comes out of; a token inside a character begins
    where that does.
    """

    def __init__(self, text: TextStream, start: int) -> None:
        self._text = text
        self._offset = start

    def take(self, token_ids: Iterable[int]) -> list[int]:
        """The offsets of the next tokens."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._text.push(token_id))
        return offsets


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
