"""The request bodies of the OpenAI API: what is honoured, what is accepted, what is refused.

Three lists make up each body. *Honoured* are the fields that these classes declare by name.
*Accepted* (``ACCEPTED``) cannot change the answer and are read past. *Neutral* (``NEUTRAL``)
are known, but only taken at the values listed, which ask for nothing. Everything else is a
400 that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from .body_lists import MAX_BIAS, Items, entries_up_to
from .structured.fields import ResponseFormat, SchemaOrText, StructuredOutputs

ACCEPTED = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"}) | {
    "prompt_cache_retention",
    "prompt_cache_options",
}

NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "store": (False,),
        "service_tier": ("auto", "default"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "verbosity": ("medium",),
        "web_search_options": (),
        "suffix": ("",),
        "best_of": (1,),
        "moderation": (),
        "spaces_between_special_tokens": (True,),
        "return_tokens_as_token_ids": (False,),
    }
)

PROMPT_SCHEMA = WithJsonSchema(
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
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], entries_up_to(MAX_BIAS)]


class Body(BaseModel):
    """Strict, finite, and closed but for those extras that ``accepted`` and ``neutral`` list."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    accepted: ClassVar[frozenset[str]] = ACCEPTED
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL


class ModelBody(Body):
    """A body that names its model; ``prompt_field`` is where it has its prompt.

    Where it need not name one (``needs_model``) the base is meant.
    """

    prompt_field: ClassVar[str] = "prompt"
    needs_model: ClassVar[bool] = True

    model: str | None = None
    stream: bool | None = None


class Part(BaseModel):
    """Strict, finite and closed."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(Part):
    """Which usage a stream carries."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(ModelBody):
    """What chat and text completions have in common; None leaves the model's default."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[Annotated[int, Field(ge=0)]] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    allowed_token_ids: Annotated[Items[int], Field(min_length=1)] | None = None
    bad_words: Items[str] | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText = None
    guided_regex: str | None = None
    guided_choice: Annotated[Items[str], Field(min_length=1)] | None = None
    guided_grammar: str | None = None


class Said(Part):
    """What clients send back as they got it, with what their libraries have noted on it.

    None of that reaches the model: LiteLLM's ``provider_specific_fields`` and ``thinking_blocks``,
    OpenRouter's ``reasoning_details``, hints for caches.
    """

    provider_specific_fields: Any = None
    thinking_blocks: Any = None
    reasoning_details: Any = None
    cache_control: Any = None


class TextPart(Said):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class CalledFunction(Said):
    """What a model wanted called; ``arguments`` are the text that it wrote, JSON or not."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class ToolCall(Said):
    """One call in an assistant's message."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Said):
    """One turn; ``chat_messages.check_message`` says what goes with which role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Items[ToolCall] | None = None
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _speak_of_refusal(cls, given: Any) -> Any:
        """What an assistant said when it refused is its text."""
        refusal = given.get("refusal") if isinstance(given, dict) else None
        if isinstance(refusal, str) and given.get("content") is None:
            return {**given, "content": refusal}
        return given


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class ToolFunction(Part):
    """A function that may be called; ``parameters`` is the JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Part):
    """The function that ``tool_choice`` names."""

    name: FunctionName


class NamedToolChoice(Part):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(Part):
    """Some of the tools, of which any may be called or one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[Items[NamedToolChoice], Field(min_length=1)]


class AllowedToolChoice(Part):
    """A choice among some of the tools; the model is told of all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


def tool_choice_kind(choice: object) -> str | None:
    """The tag of a ``tool_choice``; a fault's path leaves those in angle brackets out."""
    if isinstance(choice, str):
        return "<word>"
    kind = choice.get("type") if isinstance(choice, Mapping) else getattr(choice, "type", None)
    return f"<{kind}>" if kind in ("function", "allowed_tools") else None


TOOL_CHOICE = Discriminator(
    tool_choice_kind,
    custom_error_type="tool_choice",
    custom_error_message="must be 'none', 'auto', 'required', or an object of type function or "
    "allowed_tools",
)

ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedToolChoice, Tag("<function>")]
    | Annotated[AllowedToolChoice, Tag("<allowed_tools>")],
    TOOL_CHOICE,
]


class ChatRequest(SamplingFields):
    """The body of ``POST /v1/chat/completions``."""

    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    echo: bool | None = None
    tools: Items[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None


class CompletionRequest(SamplingFields):
    """The body of ``POST /v1/completions``; ``prompts.parse_prompts`` reads ``prompt``."""

    prompt: Annotated[Any, PROMPT_SCHEMA]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
