"""The model's tokenizer: prompts to ids, ids to text and bytes, chats to prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer as RustTokenizer

from ...lora.errors import BranchlineError

Message = dict[str, Any]

# A template may raise any text.
MAX_REASON = 1000

_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(BranchlineError):
    """The model's directory has no tokenizer that works here."""


class ChatTemplateError(BranchlineError):
    """The chat template refuses these messages, or there is none."""


class BrokenTemplateError(ChatTemplateError):
    """The chat template does not compile, or takes more than it may."""


class Tokenizer:
    """A fast Hugging Face tokenizer; every method may be called from any thread.

    ``end_token_ids`` end an answer beside the ends that the model itself knows.
    """

    def __init__(
        self,
        pretrained: Any,
        chat_template: str | None = None,
        *,
        end_token_ids: Sequence[int] = (),
        num_model_ids: int | None = None,
    ) -> None:
        self._pretrained = pretrained
        self.backend: RustTokenizer = pretrained.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.chat_template: str | None = chat_template or _default_template(pretrained)
        self._special_ids = frozenset(
            token_id
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._added_ids = frozenset(self.backend.get_added_tokens_decoder())
        self.end_token_ids = frozenset(end_token_ids)
        self._num_model_ids = num_model_ids
        decoder = self.backend.decoder
        byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._byte_level = _byte_level_alphabet() if byte_level else None
        self._num_bytes: dict[int, int] = {}

    @classmethod
    def from_directory(cls, directory: str, chat_template: str | None = None) -> Tokenizer:
        """Load from a model's directory; raises TokenizerError in one line."""
        try:
            pretrained = _load_pretrained(directory)
        except Exception as error:  # whatever a broken file makes the libraries raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TokenizerError(f"no tokenizer in {directory}: {reason}") from error
        if getattr(pretrained, "backend_tokenizer", None) is None:
            raise TokenizerError(f"{directory} has no fast tokenizer (tokenizer.json)")
        return cls(pretrained, chat_template)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the tokens that chat templates know by name, such as ``eos_token``."""
        tokens: dict[str, str] = self._pretrained.special_tokens_map
        return tokens

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``.

        As a batch of one: that, unlike a single ``encode``, leaves the GIL to other threads.
        """
        [encoded] = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded.ids
        return ids

    def character_ends(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        """Token ids of ``text``, and where in it each one ends; slower than ``encode``."""
        [encoded] = self.backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return encoded.ids, [end for _, end in encoded.offsets]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ``token_ids``; bytes that are no character come out as U+FFFD."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    @property
    def num_model_ids(self) -> int:
        """One more than the highest id of the vocabulary, added tokens apart; slow at first."""
        if self._num_model_ids is None:
            vocabulary = self.backend.get_vocab(with_added_tokens=False)
            self._num_model_ids = max(vocabulary.values(), default=-1) + 1
        return self._num_model_ids

    @property
    def num_ids(self) -> int:
        """One more than the highest id that a text can give."""
        highest = max(self._added_ids | set(self.encode("", add_special_tokens=True)), default=-1)
        return max(self.num_model_ids, highest + 1)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary, None where there is no such token."""
        token_id: int | None = self.backend.token_to_id(token)
        return token_id

    def has_token(self, token: str) -> bool:
        """Whether the vocabulary has a token of this text."""
        return self.id_of(token) is not None

    def special_ids_of(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of those texts that are special tokens."""
        ids = map(self.id_of, texts)
        return self._special_ids.intersection(token_id for token_id in ids if token_id is not None)

    def is_special(self, token_id: int) -> bool:
        """Whether ``skip_special_tokens`` leaves this token out."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, as raw bytes: a character may span several tokens."""
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_ids:
            return str(token).encode()
        if self._byte_level is not None:
            alphabet = self._byte_level
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return str(token).encode()
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return str(token).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def num_bytes(self, token_id: int) -> int:
        """How many bytes one token stands for."""
        known = self._num_bytes.get(token_id)
        if known is None:
            known = self._num_bytes[token_id] = len(self.token_bytes(token_id))
        return known

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Messages as one prompt text; raises ChatTemplateError with the template's reason."""
        template = chat_template or self.chat_template
        if template is None:
            raise ChatTemplateError(
                "the model has no chat template; give one with --chat-template or use "
                "/v1/completions"
            )
        return render_chat(
            self._pretrained,
            messages,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )


def render_chat(
    pretrained: Any,
    messages: Sequence[Message],
    *,
    chat_template: str,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Messages through transformers' ``apply_chat_template``; raises ChatTemplateError."""
    try:
        text: str = pretrained.apply_chat_template(
            _with_known_roles(messages, chat_template),
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **(variables or {}),
        )
    except jinja2.TemplateSyntaxError as error:
        raise BrokenTemplateError(f"the chat template says: {_reason(error)}") from error
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template says: {_reason(error)}") from error
    except MemoryError as error:
        raise BrokenTemplateError("the chat template takes more memory than it may") from error
    except Exception as error:  # a template is code from outside, on data from outside
        raise ChatTemplateError(f"the chat template failed: {_reason(error)}") from error
    return text


def _load_pretrained(directory: str) -> Any:
    """The tokenizer that AutoTokenizer gives.

    Where that is the plain class it is had without AutoTokenizer, which imports torch:
    three seconds and 270 MB that this process has no other use for.
    """
    config = Path(directory, "tokenizer_config.json")
    fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    has_file = Path(directory, "tokenizer.json").is_file()
    if has_file and fields.get("tokenizer_class") in _PLAIN_CLASSES:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def read_chat_template(path_or_text: str) -> str:
    """``--chat-template``: a file, or the template itself; raises TokenizerError."""
    if "{" in path_or_text or "\n" in path_or_text:
        return path_or_text
    try:
        return Path(path_or_text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"chat template {path_or_text}: {error}") from error


def _default_template(pretrained: Any) -> str | None:
    template = pretrained.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _with_known_roles(messages: Sequence[Message], template: str) -> list[Message]:
    """OpenAI's ``developer`` is ``system`` to a template that has never heard of it."""
    if "developer" in template:
        return list(messages)
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_REASON]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, backwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
