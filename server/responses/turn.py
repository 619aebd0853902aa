"""One turn of a conversation: what a request and the responses before it give the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from ...gateway.fleet.kept_items import BadReference, with_items
from ...gateway.fleet.kept_responses import RESPONSE_ID, KeptResponse
from ...gateway.fleet.responses_input import call_ids, chat_body, input_items
from ..access import Tenant
from ..body import parse_body
from ..errors import ApiError, bad_field
from ..openai import ChatRequest
from .body import AllowedTools, ResponseRequest
from .listed import listed, without_extras
from .store import ResponseStore

Item = dict[str, Any]

_FIELDS = (
    (re.compile(r"messages(\[\d+\][\w.\[\]]*)?"), "input"),
    (re.compile(r"max_(completion_)?tokens"), "max_output_tokens"),
    (re.compile(r"response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"(tools\[\d+\])\.function"), r"\1"),
    (re.compile(r"tool_choice\.function"), "tool_choice"),
    (re.compile(r"tool_choice\.allowed_tools(\.tools\[\d+\])?(\.function)?"), r"tool_choice\1"),
    (re.compile(r"reasoning_effort"), "reasoning.effort"),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a response answers: ``history`` of the responses before it, and its own ``items``."""

    body: ResponseRequest
    history: Sequence[Item]
    items: Sequence[Item]

    @classmethod
    async def read(cls, body: ResponseRequest, store: ResponseStore, tenant: Tenant) -> Turn:
        """Find what comes before; raises ApiError 400 for what can't be answered, 503 as stores."""
        if body.top_logprobs and not body.wants_logprobs:
            raise bad_field("top_logprobs", "needs include to have message.output_text.logprobs")
        _check_allowed(body)
        previous = await _previous(body.previous_response_id, store, tenant)
        history = previous.history if previous else []
        dumped = body.model_dump(include={"input"}, exclude_none=True)
        items = await _with_items(input_items(dumped), history, store, tenant)
        if not (history or items or body.instructions):
            raise bad_field("input", "is empty")
        _check_calls(history, items)
        return cls(body, history, [item for item in items if isinstance(item, dict)])

    def chat(self, num_dropped: int = 0) -> ChatRequest:
        """The chat that is asked for, without its ``num_dropped`` oldest droppable items.

        Raises ApiError 400 in the words of this endpoint.
        """
        fields = self.body.model_dump(exclude_none=True, by_alias=True, exclude={"input"})
        kept = dropped(self.all_items, num_dropped)
        try:
            return parse_body(
                ChatRequest, msgspec.json.encode(chat_body({**fields, "input": kept}))
            )
        except ApiError as error:
            raise in_our_words(error) from error

    @property
    def all_items(self) -> list[Item]:
        """All that the model is given but the instructions."""
        return [*self.history, *self.items]

    def kept_items(self, answer_id: str) -> list[Item]:
        """All items as they are kept and listed, its own with ids."""
        own = [listed(item, answer_id, index) for index, item in enumerate(self.items)]
        return [*map(without_extras, self.history), *own]


def dropped(items: Sequence[Item], num: int) -> list[Item]:
    """``items`` without the ``num`` oldest that are no system's or developer's.

    What is left begins with no output of a call that went.
    """
    kept: list[Item] = []
    for item in items:
        if num > 0 and item.get("role") not in ("system", "developer"):
            num -= 1
        else:
            kept.append(item)
    made = set(call_ids(kept, "function_call"))
    return [
        item
        for item in kept
        if item.get("type") != "function_call_output" or item.get("call_id") in made
    ]


def num_far_over(items: Sequence[Item], max_bytes: int) -> int:
    """How many of the oldest droppable ones to drop so that the rest takes about ``max_bytes``.

    Never all of them; what it takes is looked at as JSON, no prompt is made.
    """
    sizes = [len(msgspec.json.encode(item)) for item in items]
    too_many, num = sum(sizes) - max_bytes, 0
    for item, size in zip(items, sizes, strict=True):
        if too_many <= 0:
            break
        if item.get("role") not in ("system", "developer"):
            too_many, num = too_many - size, num + 1
    return max(0, min(num, num_droppable(items)))


def num_droppable(items: Sequence[Item]) -> int:
    """How many may be dropped so that one is left."""
    return sum(item.get("role") not in ("system", "developer") for item in items) - 1


def in_our_words(error: ApiError) -> ApiError:
    """An error of the chat behind a response, naming the response's fields."""
    if error.param is not None:
        param = error.param
        for pattern, ours in _FIELDS:
            found = pattern.match(param)
            if found:
                param = found.expand(ours) + param[found.end() :]
                break
        if error.message.startswith(f"{error.param}: "):
            error.message = f"{param}: " + error.message.removeprefix(f"{error.param}: ")
        error.param = param
    return error


async def _previous(
    response_id: str | None, store: ResponseStore, tenant: Tenant
) -> KeptResponse | None:
    if response_id is None:
        return None
    is_id = re.fullmatch(RESPONSE_ID, response_id)
    kept = await store.find(tenant.name, response_id) if is_id else None
    if kept is None:
        raise ApiError(
            f"Previous response with id {response_id[:100]!r} not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return kept


async def _with_items(
    items: Sequence[object], history: Sequence[Item], store: ResponseStore, tenant: Tenant
) -> list[object]:
    """``items`` with what they refer to in its place; raises ApiError 400, 503 as stores."""
    try:
        return await with_items(items, history, partial(store.find_items, tenant.name))
    except BadReference as error:
        raise bad_field(f"input[{error.index}].id", str(error), error.code) from error


def _check_allowed(body: ResponseRequest) -> None:
    if isinstance(body.tool_choice, AllowedTools):
        known = {tool.name for tool in body.tools or ()}
        for index, tool in enumerate(body.tool_choice.tools):
            if tool.name not in known:
                raise bad_field(
                    f"tool_choice.tools[{index}].name", f"{tool.name!r} is none of the tools"
                )


def _check_calls(history: Sequence[Item], items: Sequence[object]) -> None:
    made = set(call_ids(history, "function_call"))
    for index, item in enumerate(items):
        made.update(call_ids([item], "function_call"))
        for call_id in call_ids([item], "function_call_output"):
            if call_id not in made:
                raise bad_field(
                    f"input[{index}].call_id",
                    f"no function_call before it has the call_id {call_id[:100]!r}",
                )
