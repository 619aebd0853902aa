"""What an adapter's ``tokenizer.json`` may change of the base's: tokens, and how they frame a text.

The other steps are a small language of their own, with regular expressions and replacements. A
few of them make one prompt take hours, or all the memory there is, of the server's process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from ...lora.errors import AdapterError
from .text_files import TOKENIZER

FIXED_PARTS = ("normalizer", "pre_tokenizer", "decoder")
POST_PROCESSOR, ADDED_TOKENS = "post_processor", "added_tokens"

MAX_ADDED_CHARACTERS = 1 << 20
MAX_FRAME_TOKENS = 64
_MAX_PROCESSORS = 4

_MODEL_FIELDS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "max_input_chars_per_word",
)
_ALLOWED = "an adapter may have a vocabulary, added tokens and a post_processor of its own"


def check_steps(sections: Mapping[str, bytes], base: RustTokenizer) -> None:
    """Raise AdapterError for steps that the base does not have; nothing of them is built.

    ``sections`` are those of the file that differ from the base's file.
    """
    for part in FIXED_PARTS:
        if part in sections and not _is_within(json.loads(sections[part]), _state(base, part)):
            raise _differs(part)
    if POST_PROCESSOR in sections:
        own = json.loads(sections[POST_PROCESSOR])
        if own != _state(base, POST_PROCESSOR):
            _check_frame(own)
    added = json.loads(sections.get(ADDED_TOKENS, b"[]"))
    if sum(len(entry["content"]) for entry in added) > MAX_ADDED_CHARACTERS:
        raise AdapterError(TOKENIZER, f"its {ADDED_TOKENS} have too many characters")


def check_built(built: RustTokenizer, base: RustTokenizer) -> None:
    """Raise AdapterError where the library reads a step, by what is left out, otherwise."""
    for part in FIXED_PARTS:
        if _state(built, part) != _state(base, part):
            raise _differs(part)


def check_model(model: Any, base: Any) -> None:
    """Raise AdapterError unless two models differ in their vocabularies and merges alone."""
    if type(model) is not type(base):
        raise AdapterError(
            TOKENIZER, f"its model is a {type(model).__name__}, the base's {type(base).__name__}"
        )
    for name in _MODEL_FIELDS:
        if getattr(model, name, None) != getattr(base, name, None):
            raise AdapterError(TOKENIZER, f"its model's {name} is not the base model's")


def _differs(part: str) -> AdapterError:
    return AdapterError(TOKENIZER, f"its {part} is not the base model's; {_ALLOWED}")


def _state(tokenizer: RustTokenizer, part: str) -> Any:
    """A step as JSON, with all that the library fills in."""
    step = getattr(tokenizer, part)
    return None if step is None else json.loads(step.__getstate__())


def _is_within(own: Any, known: Any) -> bool:
    """Whether ``own`` is ``known``, but for fields that an older library has not written."""
    if isinstance(own, dict) and isinstance(known, dict):
        return all(name in known and _is_within(own[name], known[name]) for name in own)
    if isinstance(own, list) and isinstance(known, list):
        pairs = zip(own, known, strict=False)
        return len(own) == len(known) and all(_is_within(a, b) for a, b in pairs)
    return type(own) is type(known) and bool(own == known)


def _check_frame(own: Any) -> None:
    """Raise AdapterError unless a post-processor puts a few tokens around the text, once."""
    steps = [own]
    if isinstance(own, dict) and own.get("type") == "Sequence":
        steps = own.get("processors") or []
    kinds = [step.get("type") if isinstance(step, dict) else step for step in steps]
    if len(steps) > _MAX_PROCESSORS or not set(kinds) <= {None, "ByteLevel", "TemplateProcessing"}:
        raise AdapterError(
            TOKENIZER,
            f"its {POST_PROCESSOR} is neither the base model's nor a TemplateProcessing, a "
            f"ByteLevel or a Sequence of up to {_MAX_PROCESSORS} of these",
        )
    for step, kind in zip(steps, kinds, strict=True):
        if kind == "TemplateProcessing":
            _check_template(step)


def _check_template(step: Mapping[str, Any]) -> None:
    tokens = step.get("special_tokens") or {}
    num_texts = num_tokens = 0
    for piece in step["single"]:
        if "Sequence" in piece:
            num_texts += 1
        else:
            num_tokens += len(tokens[piece["SpecialToken"]["id"]]["ids"])
    if num_texts != 1 or num_tokens > MAX_FRAME_TOKENS:
        raise AdapterError(
            TOKENIZER,
            f"its {POST_PROCESSOR} must have the text once and up to {MAX_FRAME_TOKENS} tokens "
            "around it",
        )
