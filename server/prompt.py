"""What a request wants continued, as token ids: text, ids, batches of either, and chats."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .catalog import ServedModel
from .chat_messages import check_messages, template_chat
from .config import Limits
from .errors import ApiError, bad_field
from .openai import ChatRequest
from .text.template_runner import TemplateJob, Templates
from .text.tokenizer import ChatTemplateError, Message, Tokenizer
from .token_lists import check_token_id

# Longer texts are tokenized beside the event loop; shorter ones cost less than the hop. Those
# for a tokenizer that came with an adapter always are, whatever it makes of them.
INLINE_CHARACTERS = 2048
MAX_THREADS = 4

_RESERVED_VARIABLES = frozenset(
    {
        "messages",
        "conversation",
        "conversations",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "self",
    }
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; ``text`` is None where the client sent token ids."""

    token_ids: list[int]
    text: str | None


class PromptReader:
    """Turns checked bodies into prompts; ``tokenizer`` and ``vocab_size`` are the base's.

    The base's chat template is rendered at once, those of adapters by ``templates``.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, limits: Limits, templates: Templates
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._limits = limits
        self._templates = templates
        # Not asyncio's, which disks and archives may keep busy for long.
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="tokenizer")

    async def completion(
        self,
        prompt: object,
        add_special_tokens: bool,
        model: ServedModel,
        max_prompts: int | None = None,
    ) -> list[Prompt]:
        """``prompt`` of a text completion: one entry for a single prompt, N for a list of N."""
        entries = split_prompts(prompt)
        most = max_prompts or self._limits.max_prompts
        if len(entries) > most:
            raise bad_field("prompt", f"holds {len(entries)} prompts, the most is {most}")
        prompts = []
        for index, entry in enumerate(entries):
            field = f"prompt[{index}]" if entries is prompt else "prompt"
            prompts.append(await self._entry(field, entry, add_special_tokens, model))
            await asyncio.sleep(0)  # thousands of texts are not to hold up others' streams
        return prompts

    async def _entry(
        self, field: str, entry: str | list[int], add_special_tokens: bool, model: ServedModel
    ) -> Prompt:
        if isinstance(entry, str):
            return await self._tokenized(field, entry, add_special_tokens, model)
        if not entry:
            raise bad_field(field, "is empty")
        for token_id in (min(entry), max(entry)):
            check_token_id(field, token_id, model.vocab_size or self._vocab_size)
        return Prompt(entry, None)

    async def chat(self, body: ChatRequest, model: ServedModel) -> Prompt:
        """A chat through the adapter's template, else the base's."""
        check_messages(body.messages, self._limits)
        continue_final = bool(body.continue_final_message)
        add_generation_prompt = body.add_generation_prompt
        if continue_final and add_generation_prompt:
            raise bad_field("continue_final_message", "excludes add_generation_prompt")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final
        for name in body.chat_template_kwargs or {}:
            if name in _RESERVED_VARIABLES:
                raise bad_field("chat_template_kwargs", f"may not set {name!r}")
        chat = template_chat(body, self.template_of(model))
        try:
            text = await self._rendered(
                model,
                chat.messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final,
                variables=chat.variables,
            )
        except ChatTemplateError as error:
            raise bad_field("messages", str(error), "chat_template_error") from error
        # The template has written the special tokens already.
        return await self._tokenized("messages", text, bool(body.add_special_tokens), model)

    def template_of(self, model: ServedModel) -> str:
        """The chat template that a model's chats go through, empty where there is none."""
        return model.chat_template or self._tokenizer.chat_template or ""

    async def _rendered(self, model: ServedModel, messages: list[Message], **options: Any) -> str:
        tokenizer = model.tokenizer or self._tokenizer
        if model.chat_template is None:
            base = self._tokenizer.chat_template
            return tokenizer.render_chat(messages, chat_template=base, **options)
        job = TemplateJob(model.chat_template, tokenizer.special_tokens, messages, options)
        return await self._templates.render(model.digest or model.name, job)

    async def _tokenized(
        self, field: str, text: str, add_special_tokens: bool, model: ServedModel
    ) -> Prompt:
        vocab_size = model.vocab_size or self._vocab_size
        if model.tokenizer is None and len(text) <= INLINE_CHARACTERS:
            token_ids = _encode(self._tokenizer, field, text, add_special_tokens)
        else:
            token_ids = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                _encode,
                model.tokenizer or self._tokenizer,
                field,
                text,
                add_special_tokens,
            )
        if not token_ids:
            raise bad_field(field, "is empty")
        if max(token_ids) >= vocab_size:
            raise ApiError(
                f"{field}: the tokenizer gave token id {max(token_ids)}, which the model's "
                f"vocabulary of {vocab_size} tokens does not have.",
                param=field,
            )
        return Prompt(token_ids, text)


def _encode(tokenizer: Tokenizer, field: str, text: str, add_special_tokens: bool) -> list[int]:
    """The token ids; raises ApiError 400 for what the tokenizer does not take."""
    try:
        return tokenizer.encode(text, add_special_tokens)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, but BaseException where Rust panics
        raise bad_field(field, f"the tokenizer does not take it: {error}") from error


def split_prompts(prompt: object) -> list[str | list[int]]:
    """Text, texts, ids or lists of ids as a list of prompts; raises ApiError 400."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise bad_field("prompt", "must be a string, token ids, or a non-empty list of either")
    if _all_of(prompt, int):
        return [prompt]
    for index, entry in enumerate(prompt):
        if not (isinstance(entry, str) or (isinstance(entry, list) and _all_of(entry, int))):
            raise bad_field(f"prompt[{index}]", "must be a string or a list of token ids")
    if len({type(entry) for entry in prompt}) > 1:
        raise bad_field("prompt", "mixes strings and lists of token ids")
    return prompt


def _all_of(values: Sequence[object], kind: type) -> bool:
    """Whether each value is of exactly this type: True is no token id."""
    return set(map(type, values)) <= {kind}
