"""An adapter's own tokenizer, built on the base's: what both say alike exists once.

Two tokenizers of one vocabulary share the model inside, which is nearly all of their memory and
of the time that it takes to load them. So adapters that add tokens cost next to nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from ...lora.errors import AdapterError
from ..text.text_files import CONFIG, TOKENIZER, TextConfig
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_file import ADDED_TOKENS, MODEL, TokenizerFile
from ..text.tokenizer_rules import (
    FIXED_PARTS,
    POST_PROCESSOR,
    check_built,
    check_model,
    check_steps,
)

T = TypeVar("T")

_PARTS = (*FIXED_PARTS, POST_PROCESSOR)
_EMPTY_MODEL = b'{"type": "BPE", "vocab": {}, "merges": []}'


class _Wrapped(PreTrainedTokenizerFast):
    """transformers' tokenizer around a backend that is there already, uncopied."""

    def __init__(self, wrapped: RustTokenizer, **options: Any) -> None:
        self._tokenizer = wrapped
        super().__init__(**options)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class BaseTokenizer:
    """The base's tokenizer, digests of its file's sections (None without one) and its config."""

    tokenizer: Tokenizer
    digests: Mapping[str, str] | None
    config: TextConfig


def guarded(field: str, build: Callable[[], T]) -> T:
    """What ``build`` gives; whatever else a broken file makes the libraries raise is one line.

    Their panics in Rust come as BaseException.
    """
    try:
        return build()
    except (AdapterError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise AdapterError(field, f"makes no tokenizer: {reason}") from error


def build_tokenizer(
    base: BaseTokenizer, file: TokenizerFile | None, config: TextConfig
) -> Tokenizer:
    """The tokenizer of a file (None: the base's) and a config; raises AdapterError.

    An end token that differs from the base's is in ``end_token_ids``.
    """
    same_model, backend = guarded(TOKENIZER, lambda: _build_backend(base, file))
    wrapped = guarded(CONFIG, lambda: _wrap(backend, config))
    eos, base_eos = (c.named_tokens.get("eos_token") for c in (config, base.config))
    ends = () if eos is None or eos == base_eos else (wrapped.eos_token_id,)
    num_model_ids = base.tokenizer.num_model_ids if same_model else None
    tokenizer = Tokenizer(wrapped, end_token_ids=ends, num_model_ids=num_model_ids)
    guarded(TOKENIZER, lambda: tokenizer.num_ids)
    return tokenizer


def check_declared(declared: Mapping[str, int], tokenizer: Tokenizer) -> None:
    """Raise AdapterError where added tokens don't have the ids that they are to have."""
    for content, token_id in declared.items():
        found = tokenizer.backend.token_to_id(content)
        if found != token_id:
            has = "does not have it" if found is None else f"gives it {found}"
            raise AdapterError(
                TOKENIZER,
                f"added token {content[:40]!r} is to have the id {token_id}, but the tokenizer "
                f"{has}; save the fast tokenizer beside the adapter",
            )


def _build_backend(base: BaseTokenizer, file: TokenizerFile | None) -> tuple[bool, RustTokenizer]:
    """The backend, and whether it shares the base's model; raises AdapterError.

    What is hostile is refused before the library makes anything of it.
    """
    backend = base.tokenizer.backend
    if file is None:
        return True, _derive(backend, backend, None)
    known = base.digests or {}
    same = {name for name, digest in file.digests.items() if known.get(name) == digest}
    sections = file.sections()
    check_steps({name: raw for name, raw in sections.items() if name not in same}, backend)
    empty = {MODEL: _EMPTY_MODEL, ADDED_TOKENS: b"[]"}
    shell = RustTokenizer.from_buffer(_join(sections | empty))
    for part in same.intersection(_PARTS):
        setattr(shell, part, getattr(backend, part))
    check_built(shell, backend)
    if MODEL not in same:
        own = RustTokenizer.from_buffer(_join(sections))
        check_model(own.model, backend.model)
        for part in _PARTS:
            setattr(own, part, getattr(shell, part))
        _check_ids(own, json.loads(sections.get(ADDED_TOKENS, b"[]")))
        return False, own
    added = None if ADDED_TOKENS in same else json.loads(sections.get(ADDED_TOKENS, b"[]"))
    return True, _derive(backend, shell, added)


def _derive(
    base: RustTokenizer, shell: RustTokenizer, added: Sequence[dict[str, Any]] | None
) -> RustTokenizer:
    """A tokenizer over the base's model with the parts of ``shell``.

    ``added`` are its added tokens as in the file, None for those of the base.
    """
    backend = RustTokenizer(base.model)
    for part in _PARTS:
        setattr(backend, part, getattr(shell, part))
    if added is None:
        tokens = base.get_added_tokens_decoder()
        backend.add_tokens([tokens[token_id] for token_id in sorted(tokens)])
        return backend
    backend.add_tokens(
        [
            AddedToken(**{name: value for name, value in entry.items() if name != "id"})
            for entry in added
        ]
    )
    _check_ids(backend, added)
    return backend


def _check_ids(backend: RustTokenizer, added: Sequence[dict[str, Any]]) -> None:
    """The library numbers added tokens anew after the vocabulary, whatever the file says."""
    for entry in added:
        content, token_id = str(entry["content"]), entry["id"]
        if backend.token_to_id(content) != token_id:
            raise AdapterError(TOKENIZER, f"added token {content[:40]!r} can't have id {token_id}")


def _wrap(backend: RustTokenizer, config: TextConfig) -> Any:
    """transformers around it, from a directory that holds nothing but the names of tokens."""
    fields = {**config.named_tokens, "extra_special_tokens": list(config.extra_tokens)}
    with tempfile.TemporaryDirectory(prefix="branchline-text-") as directory:
        Path(directory, CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        return _Wrapped.from_pretrained(directory, backend, local_files_only=True)


def _join(sections: Mapping[str, bytes]) -> bytes:
    pairs = (json.dumps(name).encode() + b":" + raw for name, raw in sections.items())
    return b"{" + b",".join(pairs) + b"}"
