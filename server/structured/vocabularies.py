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
        self._paths: WeakKeyDictionary[Tokenizer, str] = WeakKeyDictionary()
        self._lock = Lock()

    async def attach(self, request: GenerationRequest, tokenizer: Tokenizer) -> GenerationRequest:
        """The request with the path of its tokenizer's vocabulary, if it has a grammar."""
        if request.params.grammar is None:
            return request
        path = self._paths.get(tokenizer) or await asyncio.to_thread(self.path_of, tokenizer)
        return replace(request, vocabulary=path)

    def path_of(self, tokenizer: Tokenizer) -> str:
        """The path of a tokenizer's vocabulary, from any thread."""
        with self._lock:
            path = self._paths.get(tokenizer)
            if path is None:
                if self._directory is None:
                    self._directory = tempfile.TemporaryDirectory(prefix="branchline-vocabulary-")
                path = read_vocabulary(tokenizer).write(self._directory.name)
                self._paths[tokenizer] = path
        return path


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The bytes of all tokens. Special tokens and those that end an answer are no text."""
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    num_ids = max(ids, default=-1) + 1
    tokens = [b""] * num_ids
    for token_id in ids:
        tokens[token_id] = tokenizer.token_bytes(token_id)
    special = [token_id for token_id in sorted(ids) if tokenizer.is_special(token_id)]
    return Vocabulary(tokens, sorted({*special, *tokenizer.end_token_ids}))
