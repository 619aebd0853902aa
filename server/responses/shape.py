"""What a response says of the request it answers, and of its tokens."""

from __future__ import annotations

from typing import Any

from ..answer import Answer
from ..wire import Usage
from .body import FunctionTool, ResponseRequest
from .wire import InputTokensDetails, OutputTokensDetails, ResponseBody, ResponseUsage


def begun_response(answer: Answer, body: ResponseRequest) -> ResponseBody:
    """A response that has only begun: its identity and what was asked for, defaults filled in."""
    params = answer.choices[0].generation.params
    return ResponseBody(
        id=answer.id,
        created_at=answer.created,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=answer.model_name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=_reasoning(body),
        safety_identifier=body.safety_identifier,
        store=body.store is not False,
        temperature=params.temperature,
        text=_text(body),
        tool_choice=_tool_choice(body),
        tools=[_tool(tool) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
        metadata=body.metadata or {},
    )


def usage_of(usage: Usage, num_reasoning: int) -> ResponseUsage:
    """The counts under this endpoint's names."""
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(num_reasoning),
        usage.total_tokens,
    )


def _reasoning(body: ResponseRequest) -> dict[str, Any]:
    effort = None if body.reasoning is None else body.reasoning.effort
    return {"effort": effort, "summary": None}


def _text(body: ResponseRequest) -> dict[str, Any]:
    asked = body.text and body.text.format
    shown = {"type": "text"} if asked is None else asked.model_dump(by_alias=True)
    return {"format": shown, "verbosity": "medium"}


def _tool_choice(body: ResponseRequest) -> str | dict[str, Any]:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _tool(tool: FunctionTool) -> dict[str, Any]:
    shown = {"description": tool.description, "parameters": tool.parameters or {}}
    return {"type": "function", "name": tool.name, **shown, "strict": bool(tool.strict)}
