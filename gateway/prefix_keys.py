"""Prefix keys: names for the beginnings of prompts that gateways and replicas both can make.

A prompt's canonical text is cut into chunks; the key of a chunk is a keyed digest of a namespace
and all text up to the chunk's end. Prompts that begin alike have keys that begin alike, and without
the fleet's secret nobody can tell from a key what it stands for, nor try out guesses.

    chat     FF role [FE name] FD content [FA tool F9 arguments ...]   FF role ...
    text     FC text
    tokens   FB FB FB FB id id ...                                        4 bytes each

Bytes from F9 to FF are in no UTF-8. Messages have no length in front, so that a conversation's text
begins with that of each of its earlier turns, and a message's with that of a shorter one. A tool's
result is a message like any other; what tools there are, which templates write in front of all, is
in the namespace.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import msgspec

CHUNK_BYTES = 256
"""About 64 tokens of English, four blocks of 16."""
KEY_BYTES = 16
MAX_CHUNKS = 2048
"""What lies behind so many chunks has no keys."""
MAX_BYTES = MAX_CHUNKS * CHUNK_BYTES

MESSAGE, NAME, CONTENT, TEXT, TOKENS = b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb\xfb\xfb\xfb"
CALL, ARGUMENTS = b"\xfa", b"\xf9"
BYTES_PER_TOKEN_ID = 4

Isolation = Literal["none", "tenant", "group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixNamespace:
    """Who may share what is cached; keys of different namespaces have nothing in common.

    ``adapter`` is a version's digest, None for the base model and for activated LoRA, whose
    prompts begin in the base's KV. ``owner`` is the name of the tenant or of the sharing group
    that ``isolation`` is by. ``variant`` is what ``request_variant`` gives.
    """

    adapter: str | None = None
    isolation: Isolation = "none"
    owner: str = ""
    salt: str | None = None
    variant: bytes = b""

    def framed(self) -> bytes:
        """All of it as bytes, each field with its length in front."""
        fields = (self.adapter, self.isolation, self.owner, self.salt)
        raw = [None if field is None else _utf8(field) for field in fields]
        return b"".join(
            b"%d:%d:" % (field is not None, len(field or b"")) + (field or b"")
            for field in [*raw, self.variant]
        )


class PrefixChain:
    """The keys of one growing text."""

    __slots__ = ("_digest", "_num_chunks", "_rest")

    def __init__(self, digest: blake2b, rest: bytes = b"", num_chunks: int = 0) -> None:
        self._digest = digest
        self._rest = rest
        self._num_chunks = num_chunks

    def extend(self, text: bytes) -> list[bytes]:
        """Keys of the chunks that ``text`` fills up."""
        data = self._rest + text if self._rest else text
        end = min(len(data) // CHUNK_BYTES, MAX_CHUNKS - self._num_chunks) * CHUNK_BYTES
        update, digest = self._digest.update, self._digest.digest
        keys: list[bytes] = []
        for start in range(0, end, CHUNK_BYTES):
            update(data[start : start + CHUNK_BYTES])
            keys.append(digest())
        self._num_chunks += len(keys)
        self._rest = data[end:] if self._num_chunks < MAX_CHUNKS else b""
        return keys

    @property
    def num_bytes(self) -> int:
        """Bytes in all chunks so far."""
        return self._num_chunks * CHUNK_BYTES

    def copy(self) -> PrefixChain:
        """One that goes on from here by itself."""
        return PrefixChain(self._digest.copy(), self._rest, self._num_chunks)


class PrefixHasher:
    """Makes keys; ``secret`` is the sha256 of the fleet's secret, as both sides keep it."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2b(secret, digest_size=32, person=b"prefix key").digest()

    def chain(self, namespace: PrefixNamespace) -> PrefixChain:
        """The keys of a text that is still empty."""
        digest = blake2b(namespace.framed(), digest_size=KEY_BYTES, key=self._key)
        return PrefixChain(digest)

    def keys(self, namespace: PrefixNamespace, text: bytes) -> list[bytes]:
        """Keys of the full chunks of a canonical text, the first ``MAX_CHUNKS`` of them."""
        return self.chain(namespace).extend(text)


def message_head(role: str, name: str | None = None) -> bytes:
    """What stands before a message's content."""
    named = b"" if name is None else NAME + _utf8(name)
    return MESSAGE + _utf8(role) + named + CONTENT


def chat_text(messages: Iterable[object]) -> bytes:
    """A chat's canonical text, as far as its messages are ones that a replica takes."""
    parts: list[bytes] = []
    num_bytes = 0
    for message in messages:
        content = _content_of(message) if isinstance(message, Mapping) else None
        if content is None or not isinstance(message, Mapping) or num_bytes >= MAX_BYTES:
            break
        role, name = message.get("role"), message.get("name")
        if not (isinstance(role, str) and isinstance(name, str | None)):
            break
        parts += (message_head(role, name), _utf8(content))
        num_bytes += len(parts[-1])
        if calls := message.get("tool_calls"):
            called = calls_text(calls)
            if called is None:
                break
            parts.append(called)
            num_bytes += len(called)
    return b"".join(parts)


def _content_of(message: Mapping[object, object]) -> str | None:
    """Its text, or what an assistant said in its place when it refused."""
    given = message.get("content")
    return content_text(message.get("refusal") if given is None else given)


def calls_text(calls: object) -> bytes | None:
    """What stands behind an assistant's content for the tools it calls; None: they are none."""
    if not isinstance(calls, list):
        return None
    parts: list[bytes] = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return None
        name, arguments = function.get("name"), function.get("arguments")
        if not (isinstance(name, str) and isinstance(arguments, str)):
            return None
        parts += (call_head(name), _utf8(arguments))
    return b"".join(parts)


def call_head(name: str) -> bytes:
    """What stands before the arguments of a call."""
    return CALL + _utf8(name) + ARGUMENTS


def content_text(content: object) -> str | None:
    """A message's content with its text parts joined; None for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def prompt_text(prompt: str) -> bytes:
    """The canonical text of a text completion's prompt."""
    return TEXT + _utf8(prompt[:MAX_BYTES])


def token_text(token_ids: Sequence[int]) -> bytes:
    """The canonical text of a prompt of token ids; b"" for what are none."""
    raw = token_bytes(token_ids)
    return TOKENS + raw if raw else b""


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Token ids as they stand in a canonical text; b"" if one of them can be no token's."""
    try:
        ids = array("I", token_ids[: MAX_BYTES // BYTES_PER_TOKEN_ID])
    except (OverflowError, TypeError):
        return b""
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def request_text(messages: object, prompt: object) -> bytes:
    """The canonical text of a decoded body's ``messages`` or ``prompt``. Never raises.

    Of several prompts it is the first. b"": a body that no replica takes.
    """
    if isinstance(messages, list):
        return chat_text(messages)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt_text(prompt)
    return token_text(prompt) if isinstance(prompt, list) else b""


def request_variant(
    *,
    is_chat: bool,
    add_special_tokens: object = None,
    chat_template_kwargs: object = None,
    tools: object = None,
    tool_choice: object = None,
    reasoning_effort: object = None,
) -> bytes:
    """A digest of what else in a chat's or text completion's body changes how its prompt begins.

    b"": nothing does. Tools are not shown to a model that must not call any.
    """
    tools = None if tool_choice == "none" else tools
    default = not is_chat
    special = default if add_special_tokens is None else bool(add_special_tokens)
    if special == default and not (chat_template_kwargs or tools or reasoning_effort):
        return b""
    try:
        kept: list[object] = [special, chat_template_kwargs or {}]
        if tools or reasoning_effort:
            kept += [_plain_tools(tools), reasoning_effort]
        encoded = msgspec.json.encode(kept, order="deterministic")
    except (TypeError, ValueError, RecursionError):
        encoded = b"?"
    return blake2b(encoded, digest_size=KEY_BYTES).digest()


def _plain_tools(tools: object) -> list[object]:
    """What of tools is written into a prompt; the same for what is left out and what is null."""
    plain: list[object] = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise TypeError("not a tool")
        fields = (function.get("description") or "", function.get("parameters") or {})
        plain.append([function.get("name"), *fields])
    return plain


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
