"""The text files of a model's or an adapter's directory: read, bounded, and what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lora.errors import AdapterError

TOKENIZER, CONFIG, SPECIAL_TOKENS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
ADDED_TOKENS, TEMPLATE = "added_tokens.json", "chat_template.jinja"

TEXT_FILES = (TOKENIZER, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE)
"""All that is read of the text side. No other file of a directory counts, no code is run."""

MAX_TEMPLATE_BYTES = 1 << 20
MAX_BYTES = {
    TOKENIZER: 64 << 20,
    CONFIG: 8 << 20,
    SPECIAL_TOKENS: 8 << 20,
    ADDED_TOKENS: 8 << 20,
    TEMPLATE: MAX_TEMPLATE_BYTES,
}

_EXTRA_TOKENS = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What the small files say.

    ``named_tokens`` are ``bos_token`` and the like, ``extra_tokens`` special ones without a name.
    ``declared`` maps added tokens to the ids that they must have. ``template_file`` is the file
    that ``template`` was found in.
    """

    named_tokens: Mapping[str, str]
    extra_tokens: tuple[str, ...]
    declared: Mapping[str, int]
    template: str | None
    template_file: str


def read_bytes(directory: Path, name: str) -> bytes | None:
    """A text file's bytes, None where there is none; raises AdapterError for too many."""
    file, limit = directory / name, MAX_BYTES[name]
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise AdapterError(name, f"can't be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise AdapterError(name, f"is larger than {limit >> 20} MiB")
    return data


def copy_text(directory: str | Path, target: str | Path) -> None:
    """Copy the text files that are there; ``target`` is made. Raises AdapterError."""
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        if (data := read_bytes(Path(directory), name)) is not None:
            Path(target, name).write_bytes(data)


def digest_text(directory: Path) -> str:
    """Of the text files' bytes, and of nothing else: no base model plays a part."""
    digest = hashlib.sha256()
    for name in TEXT_FILES:
        if (data := read_bytes(directory, name)) is not None:
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def read_text_config(directory: Path, default: Path | None = None) -> TextConfig:
    """Read the small files; without a ``tokenizer_config.json``, tokens are ``default``'s."""
    config = _read_object(directory, CONFIG)
    tokens, home = config, directory
    if config is None and default is not None:
        tokens, home = _read_object(default, CONFIG), default
    fields = dict(tokens or {})
    if "added_tokens_decoder" not in fields:  # as transformers does: one of the two counts
        fields |= _read_object(home, SPECIAL_TOKENS) or {}
    template, template_file = _template(directory, config or {})
    return TextConfig(
        named_tokens=dict(sorted(_named_tokens(fields))),
        extra_tokens=tuple(sorted({*_extra_tokens(fields)})),
        declared=dict(_declared((config or {}).get("added_tokens_decoder"), directory)),
        template=template,
        template_file=template_file,
    )


def _read_object(directory: Path, name: str) -> dict[str, Any] | None:
    data = read_bytes(directory, name)
    if data is None:
        return None
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AdapterError(name, f"is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterError(name, "must hold a JSON object")
    return fields


def _named_tokens(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if name.endswith("_token") and (content := _content(value)):
            yield name, content


def _extra_tokens(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in _EXTRA_TOKENS:
        tokens = fields.get(name) or ()
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            if content := _content(token):
                yield content


def _content(token: object) -> str | None:
    """A token's text, from the text itself or from the object it is saved as."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _declared(decoder: object, directory: Path) -> Iterator[tuple[str, int]]:
    entries = decoder.items() if isinstance(decoder, dict) else ()
    for key, token in entries:
        if not (content := _content(token)) or not str(key).isdecimal():
            raise AdapterError(CONFIG, f"added_tokens_decoder has no token for {str(key)[:40]!r}")
        yield content, int(key)
    for content, token_id in (_read_object(directory, ADDED_TOKENS) or {}).items():
        if not isinstance(token_id, int):
            raise AdapterError(ADDED_TOKENS, f"has no id for {content[:40]!r}")
        yield content, token_id


def _template(directory: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """The template and where it was found: its own file first, then the config."""
    data = read_bytes(directory, TEMPLATE)
    if data is not None:
        try:
            return data.decode() or None, TEMPLATE
        except UnicodeDecodeError as error:
            raise AdapterError(TEMPLATE, "is not UTF-8") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        return None, CONFIG
    if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise AdapterError(CONFIG, f"chat_template is larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
    return template, CONFIG
