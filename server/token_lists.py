"""Lists of token ids and of words in a request, checked against a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import bad_field
from .text.tokenizer import Tokenizer


def at_most(field: str, value: int, limit: int, unit: str = "") -> None:
    """Raises ApiError 400, with both numbers, for a value over its limit."""
    if value > limit:
        has = f"has {value} {unit}" if unit else f"is {value}"
        raise bad_field(field, f"{has}, the most is {limit}")


def check_token_id(field: str, token_id: int, vocab_size: int) -> None:
    """Raises ApiError 400 for an id that the model doesn't have."""
    if not 0 <= token_id < vocab_size:
        raise bad_field(
            field, f"token id {token_id} is outside the vocabulary of {vocab_size} tokens"
        )


def check_token_ids(
    field: str, ids: Sequence[int] | None, limit: int, vocab_size: int
) -> tuple[int, ...]:
    """The ids of a list that is not too long, each in the vocabulary."""
    at_most(field, len(ids or ()), limit, "entries")
    for token_id in ids or ():
        check_token_id(field, token_id, vocab_size)
    return tuple(ids or ())


def bad_word_ids(
    tokenizer: Tokenizer, words: Sequence[str], vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell these words, at a text's start and behind a blank.

    As in vLLM: other ways to cut a word into tokens are not kept from the answer.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            raise bad_field("bad_words", "must not hold an empty word")
        for text in (word.lstrip(), f" {word.lstrip()}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids and max(ids) < vocab_size:
                sequences[ids] = None
    return tuple(sequences)
