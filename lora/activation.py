"""Activated LoRA (aLoRA, arXiv 2504.12397): from which token of a prompt an adapter applies.

The weights apply from the first token of the last occurrence of the adapter's invocation tokens
on; all before it is computed by the base model, whose KV it equals. As PEFT's ``generate`` has it
(``peft.tuners.lora.variants``), the place is found once, in the prompt: what is generated never
moves it. An invocation that ends where the prompt ends counts, occurrences may overlap, and a
prompt without one (it may be shorter than the invocation) is the base model's from end to end.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import AdapterError

FIELD = "alora_invocation_tokens"
MAX_INVOCATION_TOKENS = 4096


def parse_invocation(value: object) -> tuple[int, ...] | None:
    """The value of ``alora_invocation_tokens`` in a configuration; None for a plain LoRA.

    Like PEFT, which asks for the list's truth, an empty list makes no activated LoRA. Raises
    AdapterError for what is no list of token ids, or one of more than ``MAX_INVOCATION_TOKENS``
    (PEFT sets no limit).
    """
    if not value:
        return None
    if not isinstance(value, list) or not all(_is_token_id(token) for token in value):
        raise AdapterError(FIELD, "must be a list of token ids, whole numbers of 0 or more")
    if len(value) > MAX_INVOCATION_TOKENS:
        raise AdapterError(FIELD, f"has {len(value)} tokens, at most {MAX_INVOCATION_TOKENS}")
    return tuple(value)


def _is_token_id(token: object) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0


def require_in_vocabulary(invocation_tokens: Sequence[int], vocab_size: int) -> None:
    """Raise AdapterError for an invocation that no prompt of this model can hold.

    PEFT takes such an adapter and then never activates it; it is surely one for another base.
    """
    for token in invocation_tokens:
        if token >= vocab_size:
            raise AdapterError(
                FIELD, f"token {token} is not in the base model's vocabulary of {vocab_size}"
            )


def find_activation(
    prompt_token_ids: Sequence[int], invocation_tokens: Sequence[int]
) -> int | None:
    """Where the last occurrence of the invocation begins, None if there is none.

    Knuth, Morris and Pratt's search from the prompt's end, so that its cost is linear whatever
    the tokens are, and small where the invocation is near the end.
    """
    assert invocation_tokens, "an adapter without invocation tokens has no activation"
    text, pattern = prompt_token_ids[::-1], invocation_tokens[::-1]
    borders = _borders(pattern)
    position = matched = 0
    while matched < len(pattern):
        if not matched:
            try:
                position = text.index(pattern[0], position)
            except ValueError:
                return None
        elif position == len(text):
            return None
        if text[position] == pattern[matched]:
            matched, position = matched + 1, position + 1
        else:
            matched = borders[matched - 1]
    return len(text) - position


def _borders(pattern: Sequence[int]) -> list[int]:
    """For each beginning of the pattern the length of its longest proper border."""
    borders = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        length += pattern[i] == pattern[length]
        borders[i] = length
    return borders
