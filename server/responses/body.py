"""The body of ``POST /v1/responses``: what is honoured, what is accepted, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, Tag

from ..body_lists import Items, entries_up_to
from ..openai import TOOL_CHOICE, CacheSalt, LogitBias, ModelBody, Part
from .items import InputItem

# Read past: they can't change an answer here. `max_tool_calls` counts OpenAI's own tools only.
ACCEPTED = frozenset({"prompt_cache_options", "prompt_cache_retention", "max_tool_calls"})

NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "background": (False,),
        "service_tier": ("auto", "default"),
        "conversation": (),
        "prompt": (),
        "context_management": ([],),
        "moderation": (),
        "access_programs": (),
        "image": (),
        "n": (1,),
    }
)
"""Known, but only taken at these values, which ask for nothing."""

LOGPROBS = "message.output_text.logprobs"

ToolName = Annotated[str, Field(min_length=1, max_length=64)]


class ResponseStreamOptions(Part):
    """Events are never padded."""

    include_obfuscation: Literal[False] | None = None


class FunctionTool(Part):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: None = None
    allowed_callers: Items[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None


class NamedTool(Part):
    """One tool by its name."""

    type: Literal["function"]
    name: ToolName


class AllowedTools(Part):
    """Some of the tools, of which any may be called or one must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Items[NamedTool], Field(min_length=1)]


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedTool, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    TOOL_CHOICE,
]


class PlainFormat(Part):
    """Text of any kind, or any JSON."""

    type: Literal["text", "json_object"]


class SchemaFormat(Part):
    """JSON that a schema takes; ``schema`` in the body."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        populate_by_name=True,
        serialize_by_alias=True,
    )

    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Part):
    """What the text has to be."""

    format: PlainFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Part):
    """How much a model thinks, where its template knows such a thing.

    Nothing here writes summaries: reasoning is given as it is, whatever ``summary`` asks for.
    """

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


Included = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
"""All but the last are of things that no answer here has."""

MetadataText = Annotated[str, Field(max_length=512)]
MetadataKey = Annotated[str, Field(max_length=64)]
Metadata = Annotated[dict[MetadataKey, MetadataText], Field(max_length=16), entries_up_to(16)]


class ResponseRequest(ModelBody):
    """The body; None leaves the model's default. The fields after ``cache_salt`` are vLLM's."""

    accepted: ClassVar[frozenset[str]] = ACCEPTED
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL
    prompt_field: ClassVar[str] = "input"

    input: str | Items[InputItem]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    store: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    include: Items[Included] | None = None
    tools: Items[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    cache_salt: CacheSalt | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[Annotated[int, Field(ge=0)]] | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text's tokens come with their log-probabilities."""
        return LOGPROBS in (self.include or ())
