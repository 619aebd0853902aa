"""What each token of a tokenizer stands for, as a file that the engine can be told of by its path.

The engine has no tokenizers: requests bring token ids. For grammars it has to know the tokens'
bytes, and which tokens are no text. Whoever has the tokenizer writes that down once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

END = b"<|end of the grammar|>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes by token id, empty for an id without a token; ``special_ids`` are never text."""

    tokens: list[bytes]
    special_ids: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, path: str) -> Vocabulary:
        """One that ``write`` wrote; raises OSError."""
        import msgspec

        return msgspec.msgpack.decode(Path(path).read_bytes(), type=cls)

    def write(self, directory: str) -> str:
        """Write it below ``directory`` under its digest; returns the path."""
        import msgspec

        data = msgspec.msgpack.encode(self)
        path = Path(directory, hashlib.sha256(data).hexdigest())
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_bytes(data)
            draft.replace(path)
        return str(path)


class GrammarTokenizer:
    """A vocabulary as llguidance takes it.

    A token of our own behind the last one, ``end_id``, stands for the end: which tokens end an
    answer is the request's affair. ``special_ids`` include ``eos_token_ids``.
    """

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: Collection[int]) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.end_id = len(vocabulary.tokens)
        self.special_ids = frozenset(vocabulary.special_ids).union(eos_token_ids)
        self.ll = LLTokenizer(TokenizerWrapper(_Tokens(vocabulary.tokens, self.special_ids)))

    @classmethod
    def read(cls, path: str, eos_token_ids: Collection[int]) -> GrammarTokenizer:
        """The one of a vocabulary's file; raises OSError."""
        return cls(Vocabulary.read(path), eos_token_ids)

    @classmethod
    def of_bytes(cls) -> GrammarTokenizer:
        """One token a byte: to look at a grammar without a model."""
        return cls(Vocabulary([bytes([byte]) for byte in range(256)]), ())


class _Tokens:
    """The attributes that llguidance reads of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: Collection[int]) -> None:
        self.eos_token_id = len(tokens)
        self.tokens = [*tokens, END]
        known = (token_id for token_id in special_ids if token_id < len(tokens))
        self.special_token_ids = [*sorted(known), self.eos_token_id]
        self._by_bytes = {token: token_id for token_id, token in enumerate(tokens) if token}

    def __call__(self, text: bytes) -> list[int]:
        """Token ids of a text, a byte at a time: nothing is forced, so no mask depends on it."""
        pieces = (self._by_bytes.get(bytes([byte])) for byte in text)
        return [token_id for token_id in pieces if token_id is not None]
