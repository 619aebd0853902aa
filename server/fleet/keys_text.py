"""Where in a prompt's tokens the chunks of its canonical text end."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from ...gateway.prefix_keys import (
    BYTES_PER_TOKEN_ID,
    MAX_BYTES,
    TEXT,
    TOKENS,
    call_head,
    message_head,
)
from ..text.tokenizer import Message, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the canonical text from ``start`` on that the prompt has at ``place``."""

    start: int
    place: int
    num_bytes: int


def find_messages(messages: Iterable[Message], rendered: bytes) -> list[Piece]:
    """The messages' contents and calls as the chat template wrote them, one behind the other.

    One that the template changed is left out; where it only took blanks off its ends, what is
    between them is found.
    """
    pieces: list[Piece] = []
    start = place = 0
    for head, content in chain.from_iterable(map(_parts, messages)):
        start += len(head)
        for candidate in (content, content.strip()):
            found = rendered.find(candidate, place) if candidate else -1
            if found >= 0:
                skipped = content.index(candidate)
                pieces.append(Piece(start + skipped, found, len(candidate)))
                place = found + len(candidate)
                break
        start += len(content)
        if start >= MAX_BYTES:
            break
    return pieces


def _parts(message: Message) -> Iterator[tuple[bytes, bytes]]:
    """What a canonical text has of a message: what stands before a text, and the text.

    Templates may write the arguments of a call anew, with other blanks; then they are not found.
    """
    yield message_head(message["role"], message.get("name")), _utf8(message["content"])
    for call in message.get("tool_calls") or ():
        function = call["function"]
        yield call_head(function["name"]), _utf8(function["arguments"])


def chat_places(pieces: Sequence[Piece], ends: Iterable[int], length: int) -> Iterator[int]:
    """How many bytes of a rendered chat hold what is in its canonical text up to each of ``ends``.

    ``ends`` grow. What lies between contents needs all up to the next one that was found, which
    may be too much but never too little; behind the last one that is ``length``.
    """
    rest = iter(pieces)
    piece = next(rest, None)
    for end in ends:
        while piece is not None and piece.start + piece.num_bytes < end:
            piece = next(rest, None)
        yield length if piece is None else piece.place + max(0, end - piece.start)


def text_places(ends: Iterable[int]) -> Iterator[int]:
    """As ``chat_places``, of a prompt that is the client's own text."""
    return (end - len(TEXT) for end in ends)


def tokens_needed(ends: Iterable[int]) -> Iterator[int]:
    """How many tokens of a prompt of ids are in its canonical text up to each of ``ends``."""
    return (-((len(TOKENS) - end) // BYTES_PER_TOKEN_ID) for end in ends)


def token_ends(
    tokenizer: Tokenizer, text: str, token_ids: Sequence[int], add_special_tokens: bool
) -> array[int] | None:
    """Where in the UTF-8 of ``text`` each of its tokens ends; None if that can't be told.

    The lengths of the tokens tell it, where they add up. Else, as where a tokenizer changes the
    text first, it has to be tokenized again.
    """
    raw = text.encode("utf-8", "surrogatepass")
    sizes = list(map(tokenizer.num_bytes, token_ids))
    _leave_out_own(tokenizer, raw, token_ids, sizes)
    if sum(sizes) == len(raw):
        return array("q", accumulate(sizes))
    ids, ends = tokenizer.character_ends(text, add_special_tokens)
    if ids != list(token_ids):
        return None
    if len(raw) == len(text):
        return array("q", accumulate(ends, max))
    return array("q", accumulate(_in_bytes(text, ends)))


def _leave_out_own(
    tokenizer: Tokenizer, raw: bytes, token_ids: Sequence[int], sizes: list[int]
) -> None:
    """Special tokens around the text, and a blank before it, are the tokenizer's own."""
    for index in (0, -1):
        token_id = token_ids[index]
        mark = tokenizer.token_bytes(token_id)
        is_there = raw.startswith(mark) if index == 0 else raw.endswith(mark)
        if tokenizer.is_special(token_id) and not is_there:
            sizes[index] = 0
    if sum(sizes) == len(raw) + 1 and not raw.startswith(b" "):
        first = next(index for index, size in enumerate(sizes) if size)
        if tokenizer.token_bytes(token_ids[first]).startswith(b" "):
            sizes[first] -= 1


def _in_bytes(text: str, ends: Iterable[int]) -> Iterator[int]:
    """What each token adds, in bytes; ``ends`` are in characters."""
    before = 0
    for end in ends:
        yield len(text[before:end].encode("utf-8", "surrogatepass"))
        before = max(before, end)


def num_tokens_at(ends: Sequence[int], place: int) -> int:
    """How many tokens hold the first ``place`` bytes."""
    return min(bisect_left(ends, place) + 1, len(ends)) if place > 0 else 0


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
