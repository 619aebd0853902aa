"""From a request to ties: its prefix keys, each with the block that holds the end of its text."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

from ...engine.block_keys import chain_keys
from ...engine.cache_types import Namespace
from ...engine.prefix_key import BYTES_PER_TOKEN
from ...engine.types import GenerationRequest
from ...gateway.prefix_keys import (
    BYTES_PER_TOKEN_ID,
    CHUNK_BYTES,
    PrefixChain,
    PrefixHasher,
    PrefixNamespace,
    chat_text,
    message_head,
    prompt_text,
    token_bytes,
    token_text,
)
from ..text.tokenizer import Message, Tokenizer
from .keys_table import Tie
from .keys_text import (
    chat_places,
    find_messages,
    num_tokens_at,
    text_places,
    token_ends,
    tokens_needed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedPrompt:
    """A prompt as its client sent it, and as the engine gets it.

    ``messages`` are None where it is no chat, ``text`` is what was tokenized, None for token ids.
    ``opens_message``: what is generated is a message of its own. ``shown`` is what of an answer's
    text a client has as its content, and so sends back. An activated LoRA
    (``uses_base_prefix``) leaves nothing in the base's KV that a later turn could find.
    """

    generation: GenerationRequest
    tokenizer: Tokenizer
    messages: Sequence[Message] | None
    text: str | None
    add_special_tokens: bool
    variant: bytes
    opens_message: bool = True
    shown: Callable[[str], str] = str
    uses_base_prefix: bool = False

    @property
    def namespace(self) -> PrefixNamespace:
        """Whose keys they are, as a gateway sees it."""
        generation = self.generation
        group = generation.cache_group
        return PrefixNamespace(
            adapter=None if self.uses_base_prefix else generation.adapter,
            isolation="tenant" if group is None else "group",
            owner=generation.tenant if group is None else group,
            salt=generation.cache_salt,
            variant=self.variant,
        )

    @property
    def canonical(self) -> bytes:
        """Its canonical text."""
        if self.messages is not None:
            return chat_text(self.messages)
        if self.text is not None:
            return prompt_text(self.text)
        return token_text(self.generation.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class BlockNames:
    """How this replica's engine names its blocks."""

    model: str
    block_size: int
    isolate_tenants: bool

    def namespace(self, prompt: KeyedPrompt) -> Namespace:
        """The namespace of a prompt's blocks, an activated LoRA's only before its activation."""
        generation = prompt.generation
        adapter = None if prompt.uses_base_prefix else generation.adapter
        base = Namespace(self.model, adapter, salt=generation.cache_salt)
        if not self.isolate_tenants:
            return base
        if generation.cache_group is not None:
            return base._replace(group=generation.cache_group)
        return base._replace(tenant=generation.tenant)

    def chain(
        self, parent: bytes | None, namespace: Namespace, token_ids: Iterable[int]
    ) -> tuple[list[bytes], list[int]]:
        """Keys of the full blocks of ``token_ids``, and the tokens behind them."""
        ids, block_bytes = array("i", token_ids), self.block_size * BYTES_PER_TOKEN
        end = len(ids) // self.block_size * self.block_size
        return chain_keys(parent, namespace, ids[:end].tobytes(), block_bytes), list(ids[end:])


@dataclass(frozen=True, slots=True)
class TiedPrompt:
    """A prompt's ties, and what those of its answer go on from."""

    ties: list[Tie]
    chain: PrefixChain
    num_bytes: int
    namespace: Namespace
    last_block: bytes | None
    num_blocks: int
    rest: list[int]


class TieMaker:
    """Makes ties; slow, and safe to call from any thread."""

    def __init__(self, hasher: PrefixHasher, names: BlockNames) -> None:
        self._hasher = hasher
        self._names = names

    def of_prompt(self, prompt: KeyedPrompt) -> TiedPrompt:
        """The ties of a prompt's chunks."""
        canonical = prompt.canonical
        chain = self._hasher.chain(prompt.namespace)
        keys = chain.extend(canonical)
        namespace = self._names.namespace(prompt)
        blocks, rest = self._names.chain(None, namespace, prompt.generation.prompt_token_ids)
        ends = range(CHUNK_BYTES, (len(keys) + 1) * CHUNK_BYTES, CHUNK_BYTES)
        needed = _needed(prompt, ends) if keys else iter(())
        ties = list(self._ties(keys, needed, blocks, 0, None))
        last = blocks[-1] if blocks else None
        return TiedPrompt(ties, chain, len(canonical), namespace, last, len(blocks), rest)

    def of_answer(
        self, prompt: KeyedPrompt, tied: TiedPrompt, text: str, token_ids: Sequence[int]
    ) -> list[Tie]:
        """The ties of the chunks that the answer ends, as the next turn will have it."""
        chain = tied.chain.copy()
        first_end = chain.num_bytes + CHUNK_BYTES - tied.num_bytes
        turn = _next_turn(prompt, text, token_ids)
        keys = chain.extend(turn.head + turn.content)
        blocks, _ = self._names.chain(tied.last_block, tied.namespace, [*tied.rest, *token_ids])
        num_prompt = len(prompt.generation.prompt_token_ids)
        places = range(first_end - len(turn.head), turn.num_same + 1, CHUNK_BYTES)
        needed = (num_prompt + num_tokens_at(turn.ends, place) for place in places)
        return list(self._ties(keys, needed, blocks, tied.num_blocks, tied.last_block))

    def _ties(
        self,
        keys: Sequence[bytes],
        needed: Iterable[int],
        blocks: Sequence[bytes],
        num_before: int,
        last_before: bytes | None,
    ) -> Iterator[Tie]:
        """Each key with the last full block of the tokens that its text needs, or the first block.

        ``blocks`` are those behind the first ``num_before``.
        """
        for key, num_tokens in zip(keys, needed, strict=False):
            place = max(1, num_tokens // self._names.block_size) - num_before
            if place < 1 and last_before is not None:
                yield key, last_before
            elif 1 <= place <= len(blocks):
                yield key, blocks[place - 1]


def _needed(prompt: KeyedPrompt, ends: Iterable[int]) -> Iterator[int]:
    """How many tokens the canonical text up to each of ``ends`` needs; none if that is unknown."""
    token_ids = prompt.generation.prompt_token_ids
    if prompt.text is None:
        yield from tokens_needed(ends)
        return
    token_places = token_ends(prompt.tokenizer, prompt.text, token_ids, prompt.add_special_tokens)
    if token_places is None:
        return
    if prompt.messages is None:
        places = text_places(ends)
    else:
        rendered = _utf8(prompt.text)
        places = chat_places(find_messages(prompt.messages, rendered), ends, len(rendered))
    for place in places:
        yield num_tokens_at(token_places, place)


@dataclass(frozen=True, slots=True)
class _NextTurn:
    """What an answer adds to the canonical text when its client sends it back.

    ``ends`` are those of its tokens in ``content``, right as far as the two are the same.
    """

    head: bytes
    content: bytes
    ends: list[int]
    num_same: int


def _next_turn(prompt: KeyedPrompt, text: str, token_ids: Sequence[int]) -> _NextTurn:
    if prompt.text is None:
        content = token_bytes(token_ids)
        ends = list(accumulate(repeat(BYTES_PER_TOKEN_ID, len(token_ids))))
        return _NextTurn(b"", content, ends, len(content))
    tokenizer, content = prompt.tokenizer, _utf8(prompt.shown(text))
    opens = prompt.messages is not None and prompt.opens_message
    # Special tokens are not shown, or not sent back as such.
    parts = [b"" if tokenizer.is_special(one) else tokenizer.token_bytes(one) for one in token_ids]
    if parts and parts[0].startswith(b" ") and not content.startswith(b" "):
        parts[0] = parts[0][1:]  # some tokenizers leave out the first blank
    num_same = _num_same(b"".join(parts), content)
    head = message_head("assistant") if opens else b""
    return _NextTurn(head, content, list(accumulate(map(len, parts))), num_same)


def _num_same(one: bytes, other: bytes) -> int:
    """How many bytes two beginnings have in common."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(place for place in range(shorter) if one[place] != other[place])


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
