"""Chat templates of adapters, rendered: in a process of their own, or where they are trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from .tokenizer import BrokenTemplateError, Message, render_chat

# A request's body has fewer, and the longest context of a model takes fewer still.
MAX_CHARACTERS = 16 << 20


@dataclass(frozen=True, slots=True)
class TemplateJob:
    """A chat to be rendered; ``options`` are those of ``Tokenizer.render_chat``."""

    template: str
    special_tokens: Mapping[str, str]
    messages: Sequence[Message]
    options: Mapping[str, Any] = field(default_factory=dict)


class _NamedTokens:
    """As much of a tokenizer as transformers looks at when it renders a chat."""

    chat_template = None
    get_chat_template = PreTrainedTokenizerBase.get_chat_template
    apply_chat_template = PreTrainedTokenizerBase.apply_chat_template

    def __init__(self, special_tokens: Mapping[str, str]) -> None:
        self.special_tokens_map = special_tokens


def render(job: TemplateJob) -> str:
    """The chat as the template has it; raises ChatTemplateError."""
    tokens = _NamedTokens(job.special_tokens)
    text = render_chat(tokens, job.messages, chat_template=job.template, **job.options)
    if len(text) > MAX_CHARACTERS:
        raise BrokenTemplateError(
            f"the chat template gave {len(text)} characters, the most is {MAX_CHARACTERS}"
        )
    return text
