"""Prompts and chats given to ``LLM``, as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine.errors import RequestError
from ..engine.types import SamplingParams
from .prompt import split_prompts
from .text.tokenizer import Message, Tokenizer

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Chats = Sequence[Message] | Sequence[Sequence[Message]]


@dataclass(frozen=True, slots=True)
class OfflinePrompt:
    """One prompt; ``text`` is None where token ids were given."""

    text: str | None
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How chats are rendered; ``variables`` are what the template may read besides."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def opens_answer(self) -> bool:
        """Whether the template opens a new message; raises RequestError for both at once."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError("continue_final_message", "excludes add_generation_prompt")
        return self.add_generation_prompt


def split_offline(prompts: Prompts) -> list[str | list[int]]:
    """One entry a prompt; tuples and other sequences are as good as lists."""
    if isinstance(prompts, str):
        return [prompts]
    if not prompts:
        return []
    return split_prompts([one if isinstance(one, str | int) else list(one) for one in prompts])


def split_chats(messages: Chats) -> list[list[Message]]:
    """One entry a chat; raises RequestError for what is none."""
    chats: list[Any] = list(messages)
    if chats and isinstance(chats[0], Mapping):
        chats = [chats]
    for chat in chats:
        if not chat or isinstance(chat, str) or not all(isinstance(m, Mapping) for m in chat):
            raise RequestError("messages", "must be a list of messages, or of such lists")
    return [list(chat) for chat in chats]


def encode(tokenizer: Tokenizer, entry: str | list[int]) -> OfflinePrompt:
    """A prompt as tokens."""
    if not isinstance(entry, str):
        return OfflinePrompt(None, entry)
    return OfflinePrompt(entry, tokenizer.encode(entry, add_special_tokens=True))


def render(
    tokenizer: Tokenizer, template: str | None, chat: Sequence[Message], options: ChatOptions
) -> OfflinePrompt:
    """A chat through a template, which writes the special tokens."""
    text = tokenizer.render_chat(
        chat,
        chat_template=template,
        add_generation_prompt=options.opens_answer,
        continue_final_message=options.continue_final_message,
        variables=options.variables,
    )
    return OfflinePrompt(text, tokenizer.encode(text, add_special_tokens=False))


def one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams | None]:
    """Parameters for each prompt: repeated where they are one for all."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise RequestError("sampling_params", f"{len(params)} of them for {num_prompts} prompts")
    return params
