"""Gives the choices of a request what makes their prefix keys, where gateways ask for these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ...gateway.prefix_keys import request_variant
from ..catalog import ServedModel
from ..chat_messages import to_template
from ..config import ServeConfig
from ..generation import ChoiceRequest
from ..openai import ChatMessage, ChatRequest, CompletionRequest
from ..output.parts import ContentText, OutputParser
from ..prompt import Prompt
from ..supervisor import EngineSupervisor
from ..text.tokenizer import Message, Tokenizer
from .keys import PrefixKeys
from .keys_ties import KeyedPrompt


def build_prefix_keys(
    config: ServeConfig, supervisor: EngineSupervisor, epoch: str
) -> PrefixKeys | None:
    """The keys of a replica in a fleet; None outside of one, or without a prefix cache."""
    secret = config.access.fleet_secret
    if secret is None or not config.engine.enable_prefix_caching:
        return None
    isolate = config.engine.isolate_tenants
    keys = PrefixKeys.of(epoch, secret, supervisor.info, isolate_tenants=isolate)
    supervisor.subscribe_blocks(keys.table.take_blocks)
    return keys


def key_chat(
    keys: PrefixKeys | None,
    body: ChatRequest,
    model: ServedModel,
    prompt: Prompt,
    choices: list[ChoiceRequest],
    tokenizer: Tokenizer,
    new_parser: Callable[[], OutputParser] | None = None,
) -> list[ChoiceRequest]:
    """The choices of a chat; ``new_parser`` tells an answer's content from its other parts."""
    if keys is None or prompt.text is None:  # cut: its beginning is not its text's
        return choices
    keyed = KeyedPrompt(
        generation=choices[0].generation,
        tokenizer=model.tokenizer or tokenizer,
        messages=[_canonical(message) for message in body.messages],
        text=prompt.text,
        add_special_tokens=bool(body.add_special_tokens),
        variant=request_variant(
            is_chat=True,
            add_special_tokens=body.add_special_tokens,
            chat_template_kwargs=body.chat_template_kwargs,
            tools=[tool.model_dump() for tool in body.tools or ()],
            tool_choice=body.tool_choice,
            reasoning_effort=body.reasoning_effort,
        ),
        opens_message=not body.continue_final_message,
        shown=str if new_parser is None else partial(_content, new_parser),
        uses_base_prefix=model.uses_base_prefix,
    )
    return _with_keys(keys, keyed, choices)


def key_completion(
    keys: PrefixKeys | None,
    body: CompletionRequest,
    model: ServedModel,
    prompts: Sequence[Prompt],
    choices: list[ChoiceRequest],
    tokenizer: Tokenizer,
) -> list[ChoiceRequest]:
    """The choices of a text completion; of several prompts the first one has keys."""
    if keys is None:
        return choices
    keyed = KeyedPrompt(
        generation=choices[0].generation,
        tokenizer=model.tokenizer or tokenizer,
        messages=None,
        text=prompts[0].text,
        add_special_tokens=body.add_special_tokens is not False,
        variant=request_variant(is_chat=False, add_special_tokens=body.add_special_tokens),
        uses_base_prefix=model.uses_base_prefix,
    )
    return _with_keys(keys, keyed, choices)


def _with_keys(
    keys: PrefixKeys, keyed: KeyedPrompt, choices: list[ChoiceRequest]
) -> list[ChoiceRequest]:
    opened = keys.open(keyed)
    if opened is None:
        return choices
    return [choice if choice.prompt_index else replace(choice, keys=opened()) for choice in choices]


def _canonical(message: ChatMessage) -> Message:
    """What of a message is in its canonical text, as its client sent it."""
    turn = to_template(message)
    if message.tool_calls:
        turn["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return turn


def _content(new_parser: Callable[[], OutputParser], text: str) -> str:
    parser = new_parser()
    parts = [*parser.push(text), *parser.finish()]
    return "".join(part.text for part in parts if isinstance(part, ContentText))
