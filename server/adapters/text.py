"""The text side of adapters: tokenizers and chat templates of their own, each in memory once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from ...lora.errors import AdapterError
from ..text.template_runner import InlineTemplates, TemplateJob, Templates
from ..text.text_files import (
    CONFIG,
    TEXT_FILES,
    TOKENIZER,
    TextConfig,
    copy_text,
    digest_text,
    read_text_config,
)
from ..text.tokenizer import BrokenTemplateError, ChatTemplateError, Tokenizer
from ..text.tokenizer_file import TokenizerFiles
from .tokenizer import BaseTokenizer, build_tokenizer, check_declared, guarded

__all__ = ["TEXT_FILES", "AdapterText", "TextStore", "check_vocabulary", "copy_text"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class AdapterText:
    """What an adapter says otherwise than its base; None is the base's.

    ``text_digest`` is of its files' bytes.
    """

    text_digest: str
    tokenizer: Tokenizer | None
    chat_template: str | None


class TextStore:
    """Reads the text files of adapters; every method may be called from any thread.

    Adapters whose tokenizers say the same share one, and it goes when the last of them goes; so
    it is with all that equal files say.
    ``read`` blocks, and a vocabulary of its own holds the interpreter up while it loads: about
    2 microseconds a token, once for all adapters that have it. ``templates`` is where the chat
    templates of adapters are rendered; by default in this process, without a bound.
    """

    def __init__(
        self, base_directory: str, base: Tokenizer, templates: Templates | None = None
    ) -> None:
        self.templates = templates or InlineTemplates()
        self._directory = Path(base_directory)
        base.num_model_ids  # noqa: B018 - counted now, before there is traffic
        self._files = TokenizerFiles(self._directory)
        config = _base_config(self._directory)
        self._base = BaseTokenizer(base, self._files.base_digests, config)
        self._base_key = _key(self._files.base_digests, config)
        self._tokenizers: WeakValueDictionary[str, Tokenizer] = WeakValueDictionary()
        self._texts: WeakValueDictionary[str, AdapterText] = WeakValueDictionary()
        self._lock = threading.Lock()

    def read(self, directory: str | Path) -> AdapterText | None:
        """What the adapter in ``directory`` ships, None where it is all the base's.

        Raises AdapterError that names the file.
        """
        directory = Path(directory)
        with self._lock:
            config = guarded(CONFIG, lambda: read_text_config(directory, default=self._directory))
            tokenizer = self._tokenizer(directory, config)
        template = config.template
        if template == self._base.config.template:
            template = None
        if tokenizer is None and template is None:
            return None
        if template is not None:
            self._check_template(template, tokenizer, config.template_file)
        text = AdapterText(digest_text(directory), tokenizer, template)
        with self._lock:
            return self._texts.setdefault(text.text_digest, text)

    def _tokenizer(self, directory: Path, config: TextConfig) -> Tokenizer | None:
        file = guarded(TOKENIZER, lambda: self._files.read(directory))
        key = _key(self._files.base_digests if file is None else file.digests, config)
        tokenizer = None
        if key != self._base_key:
            tokenizer = self._tokenizers.get(key)
            if tokenizer is None:
                tokenizer = build_tokenizer(self._base, file, config)
                self._tokenizers[key] = tokenizer
        if config.declared != self._base.config.declared:
            check_declared(config.declared, tokenizer or self._base.tokenizer)
        return tokenizer

    def _check_template(self, template: str, tokenizer: Tokenizer | None, file: str) -> None:
        """Refuse a template that does not compile, or takes too much with a chat of one line.

        It may well refuse that chat: what it wants to hear is its own affair.
        """
        tokens = (tokenizer or self._base.tokenizer).special_tokens
        job = TemplateJob(template, tokens, [{"role": "user", "content": "Hello"}])
        try:
            self.templates.render_from_thread(template, job)
        except BrokenTemplateError as error:
            raise AdapterError(file, str(error)) from error
        except ChatTemplateError:
            pass


def check_vocabulary(text: AdapterText | None, vocab_size: int) -> None:
    """Raise AdapterError where the tokenizer gives ids that the adapter's model does not have."""
    if text is None or text.tokenizer is None or text.tokenizer.num_ids <= vocab_size:
        return
    raise AdapterError(
        TOKENIZER,
        f"gives token ids up to {text.tokenizer.num_ids - 1}, but the vocabulary has {vocab_size} "
        "ids: an adapter that adds tokens must ship their rows of embed_tokens and lm_head",
    )


def _base_config(directory: Path) -> TextConfig:
    """An empty one where the base's files are odd: it has been loaded by another way."""
    try:
        return guarded(CONFIG, lambda: read_text_config(directory))
    except AdapterError:
        return TextConfig({}, (), {}, None, CONFIG)


def _key(digests: Mapping[str, str] | None, config: TextConfig) -> str:
    """Equal for tokenizers that say the same."""
    parts = [digests and dict(digests), dict(config.named_tokens), config.extra_tokens]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
