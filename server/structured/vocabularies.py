"""What tokenizers' tokens stand for, written down for the engine: a file a tokenizer."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from threading import Lock
from weakref import WeakKeyDictionary

from ...engine.grammar.vocabulary import Vocabulary
from ...engine.types import GenerationRequest
from ..text.tokenizer import Tokenizer


class Vocabularies:
    """Files in a directory that is there as long as this is; made when they are first needed."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._paths: WeakKeyDictionary[Tokenizer, dict[frozenset[int], str]] = WeakKeyDictionary()
        self._lock = Lock()

    async def attach(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        shown_ids: frozenset[int] = frozenset(),
    ) -> GenerationRequest:
        """The request with the path of its tokenizer's vocabulary, if it has a grammar."""
        if request.params.grammar is None:
            return request
        known = self._paths.get(tokenizer, {}).get(shown_ids)
        path = known or await asyncio.to_thread(self.path_of, tokenizer, shown_ids)
        return replace(request, vocabulary=path)

    def path_of(self, tokenizer: Tokenizer, shown_ids: frozenset[int] = frozenset()) -> str:
        """The path of a tokenizer's vocabulary, from any thread.

        ``shown_ids`` are special tokens that the answer's text has, so that they match as text.
        """
        with self._lock:
            paths = self._paths.setdefault(tokenizer, {})
            path = paths.get(shown_ids)
            if path is None:
                if self._directory is None:
                    self._directory = tempfile.TemporaryDirectory(prefix="branchline-vocabulary-")
                path = read_vocabulary(tokenizer, shown_ids).write(self._directory.name)
                paths[shown_ids] = path
        return path


def read_vocabulary(tokenizer: Tokenizer, shown_ids: frozenset[int] = frozenset()) -> Vocabulary:
    """The bytes of all tokens. Special tokens, but for ``shown_ids``, and those that end an answer
    are no text."""
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    num_ids = max(ids, default=-1) + 1
    tokens = [b""] * num_ids
    for token_id in ids:
        tokens[token_id] = tokenizer.token_bytes(token_id)
    special = [token_id for token_id in sorted(ids) if tokenizer.is_special(token_id)]
    return Vocabulary(tokens, sorted({*special} - shown_ids | tokenizer.end_token_ids))
