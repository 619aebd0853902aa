"""The request bodies of the OpenAI API: what is honoured, what is accepted, what is refused.

Three lists make up each body. *Honoured* are the fields that these classes declare by name.
*Accepted* (``ACCEPTED``) cannot change the answer and are read past. *Neutral* (``NEUTRAL``)
are known, but only taken at the values listed, which ask for nothing. Everything else is a
400 that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

ACCEPTED = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"}) | {
    "prompt_cache_retention"
}

NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "store": (False,),
        "service_tier": ("auto", "default"),
        "response_format": ({"type": "text"},),
        "structured_outputs": ({},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "suffix": ("",),
        "best_of": (1,),
        "use_beam_search": (False,),
        "length_penalty": (1.0,),
        "prompt_logprobs": (),
        "truncate_prompt_tokens": (),
        "allowed_token_ids": (),
        "bad_words": ([],),
    }
)

_PROMPT_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            {
                "type": "array",
                "minItems": 1,
                "items": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            },
        ]
    }
)


CacheSalt = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """Strict, finite, and closed but for what ``openai_fields`` sorts out of the extras."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class Part(BaseModel):
    """Strict, finite and closed."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(Part):
    """Which usage a stream carries."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(Body):
    """What chat and text completions have in common; None leaves the model's default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None


class TextPart(Part):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ChatMessage(Part):
    """One turn. What assistants' messages carry beside text is taken only when empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ChatRequest(SamplingFields):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields):
    """The body of ``POST /v1/completions``; ``prompts.parse_prompts`` reads ``prompt``."""

    prompt: Annotated[Any, _PROMPT_SCHEMA]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
