"""``tokenizer.json``, known by what its sections say rather than by their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenizers import Tokenizer as RustTokenizer

from ...lora.errors import AdapterError
from .text_files import TOKENIZER, read_bytes

MODEL, ADDED_TOKENS = "model", "added_tokens"
MAX_REMEMBERED = 256

# A trainer's way to cut and fill batches, which a server switches off.
_NEUTRAL = ("truncation", "padding")


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """One file: its bytes, and a digest of each section that matters."""

    data: bytes
    digests: Mapping[str, str]
    parsed: Mapping[str, bytes] | None = None

    def sections(self) -> dict[str, bytes]:
        """The sections that matter, unread."""
        return dict(self.parsed or _sections(self.data))


class TokenizerFiles:
    """Reads files beside the base's; what was seen before is not parsed again.

    Parsing holds the interpreter up, and with it everything else in the process.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._digests: dict[str, Mapping[str, str]] = {}
        self._models: dict[str, str] = {}
        self.base_digests: Mapping[str, str] | None = None
        with contextlib.suppress(AdapterError):  # what the base is made of is not judged here
            if (base := self.read(directory)) is not None:
                self.base_digests = base.digests

    def read(self, directory: Path) -> TokenizerFile | None:
        """The file in a directory, None without one; raises AdapterError.

        And whatever the library raises for a vocabulary that it can't read.
        """
        data = read_bytes(directory, TOKENIZER)
        if data is None:
            return None
        digest = _sha256(data)
        if digest in self._digests:
            return TokenizerFile(data, self._digests[digest])
        sections = _sections(data)
        digests = self._digests[digest] = self._digest_sections(sections)
        _forget(self._digests)
        return TokenizerFile(data, digests, sections)

    def _digest_sections(self, sections: Mapping[str, bytes]) -> dict[str, str]:
        if MODEL not in sections:
            raise AdapterError(TOKENIZER, "has no model")
        return {
            name: self._digest_model(raw) if name == MODEL else _sha256(_plain(raw))
            for name, raw in sections.items()
        }

    def _digest_model(self, raw: bytes) -> str:
        """The base's digest where the vocabulary is the base's, however it is written."""
        digest = _sha256(raw)
        if self.base_digests is None or digest == self.base_digests[MODEL]:
            return digest
        base = read_bytes(self._directory, TOKENIZER)
        if base and self._written_anew(_sections(base)[MODEL]) == self._written_anew(raw):
            return self.base_digests[MODEL]
        return digest

    def _written_anew(self, raw: bytes) -> str:
        """The digest of a model as the library itself writes it."""
        digest = _sha256(raw)
        if digest not in self._models:
            shell = RustTokenizer.from_buffer(b'{"version":"1.0","model":' + raw + b"}")
            self._models[digest] = _sha256(_sections(shell.to_str().encode())[MODEL])
            _forget(self._models)
        return self._models[digest]


def _sections(data: bytes) -> dict[str, bytes]:
    try:
        sections = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise AdapterError(TOKENIZER, f"is no JSON object: {error}") from error
    return {name: bytes(raw) for name, raw in sections.items() if name not in _NEUTRAL}


def _plain(raw: bytes) -> bytes:
    return json.dumps(json.loads(raw), sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _forget(memory: dict[str, Mapping[str, str]] | dict[str, str]) -> None:
    """Drop the oldest entry past the most that are kept."""
    if len(memory) > MAX_REMEMBERED:
        del memory[next(iter(memory))]
