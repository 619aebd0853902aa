"""Chats: from body to choices, for each endpoint that answers one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from ..engine.types import Grammar, SamplingParams
from .access import Tenant
from .answer import Answer
from .catalog import ServedModel
from .chat_writer import ChatWriter
from .fleet.keys_choices import key_chat
from .generation import Terms, expand_choices
from .openai import ChatRequest
from .output.parts import OutputParser
from .output_plan import OutputPlan
from .prompt_cut import echoed, truncated
from .sampling import fit_max_tokens, sampling_params, with_seed
from .sampling_rules import check_prompt_scores
from .services import Services
from .structured.read import FieldGrammar, read_grammar
from .text.tokenizer import Tokenizer
from .tool_choice import ToolTerms

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer to a chat that is yet to be generated; ``tokenizer`` is its model's."""

    answer: Answer
    tokenizer: Tokenizer
    plan: OutputPlan = field(default_factory=OutputPlan)

    def parser(self, choice_index: int) -> OutputParser:
        """A new parser for the text of one choice."""
        return self.plan.new_parser()


async def open_chat_answer(
    services: Services,
    body: ChatRequest,
    model: ServedModel,
    tenant: Tenant,
    *,
    kind: str,
    clips_max_tokens: bool = False,
) -> ChatAnswer:
    """Check a chat and lay out its choices; raises ApiError for what is refused.

    ``kind`` is what the answer's id begins with, up to and with its dash or underscore. With
    ``clips_max_tokens`` an answer that is to be longer than the context has room is cut short.
    """
    params = with_seed(sampling_params(body, services.sampling.of(model)))
    terms = services.outputs.read(body)
    given = read_grammar(body, services.sampling.limits)
    prompt = await services.prompts.chat(body, model)
    tokenizer = model.tokenizer or services.tokenizer
    template = services.prompts.template_of(model)
    plan = await _worked_out(
        terms, partial(services.outputs.plan, body, terms, template, tokenizer, prompt.text)
    )
    plan = plan.beside(given)
    params = replace(params, grammar=await _grammar(services, given, terms, plan, tenant.name))
    prompt = truncated(prompt, body, params.max_tokens, services.sampling.max_model_len)
    check_prompt_scores(body, [len(prompt.token_ids)], 1, services.sampling.limits)
    params = _fitted(services, params, len(prompt.token_ids), clips_max_tokens)
    choices = expand_choices([(prompt.token_ids, params)], model.digest, Terms.of(body, tenant))
    choices = [plan.of_choice(choice) for choice in choices]
    choices = key_chat(
        services.prefix_keys,
        body,
        model,
        prompt,
        choices,
        services.tokenizer,
        new_parser=None if plan.is_plain else plan.new_parser,
    )
    answer = Answer.open(kind, body, model, [prompt], choices)
    answer = replace(answer, reading=plan.key, thinking=plan.thinking)
    return ChatAnswer(answer, tokenizer, plan)


async def _grammar(
    services: Services,
    given: FieldGrammar | None,
    terms: ToolTerms,
    plan: OutputPlan,
    tenant: str,
) -> Grammar | None:
    given = await services.grammars.in_own_dialect(given, tenant)
    wanted = await _worked_out(terms, partial(services.outputs.grammar, given, terms, plan))
    return await services.grammars.checked(wanted, tenant)


async def _worked_out(terms: ToolTerms, work: Callable[[], T]) -> T:
    """What ``work`` gives; in a thread where it goes through the schemas of many tools."""
    is_long = terms.is_forced or terms.is_checked
    return await asyncio.to_thread(work) if is_long else work()


def _fitted(
    services: Services, params: SamplingParams, num_prompt_tokens: int, clips: bool
) -> SamplingParams:
    room = services.sampling.max_model_len - num_prompt_tokens
    if clips and params.max_tokens is not None and room > 0:
        params = replace(params, max_tokens=min(params.max_tokens, room))
    return fit_max_tokens(
        params,
        num_prompt_tokens,
        services.sampling.max_model_len,
        default=services.sampling.defaults.max_tokens,
        prompt_field="messages",
    )


async def open_chat(
    services: Services, body: ChatRequest, model: ServedModel, tenant: Tenant
) -> ChatWriter:
    """``POST /v1/chat/completions``; raises ApiError for what is refused."""
    opened = await open_chat_answer(services, body, model, tenant, kind="chatcmpl-")
    return ChatWriter(opened.answer, opened.tokenizer, opened.plan, echoed(body))
