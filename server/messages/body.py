"""The request bodies of Anthropic's Messages API, in the three lists of ``openai.py``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from ..body_lists import Items
from ..openai import CacheSalt, ModelBody, Part

ACCEPTED = frozenset(
    {"cache_control", "diagnostics", "metadata", "user_profile_id", "workspace_id"}
)

NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "container": (),
        "context_management": (),
        "inference_geo": ("global", "not_available"),
        "mcp_servers": ([],),
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
    }
)


class CacheControl(Part):
    """Where Anthropic's cache begins; here every prompt's beginning is cached."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Part):
    """A piece of a message's content."""

    cache_control: CacheControl | None = None


class TextBlock(Block):
    """Text."""

    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Part):
    """What the assistant thought, as it came."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Part):
    """What another assistant thought, which nobody can read here: left out."""

    type: Literal["redacted_thinking"]
    data: str


class DirectCaller(Part):
    """Who called a tool: the model itself."""

    type: Literal["direct"]


class ToolUseBlock(Block):
    """A tool that the assistant called."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: dict[str, Any]
    caller: DirectCaller | None = None
    toolset_name: None = None


def _tag(block: object) -> str | None:
    """The branch of a union of blocks or messages, by ``type`` or ``role``."""
    fields = block if isinstance(block, dict) else vars(block) if isinstance(block, Part) else {}
    kind = fields.get("type", fields.get("role"))
    return f"<{kind}>" if isinstance(kind, str) else None


def _one_of(what: str) -> Discriminator:
    return Discriminator(_tag, custom_error_type="no_such_kind", custom_error_message=what)


_Text = Annotated[TextBlock, Tag("<text>")]


class ToolResultBlock(Block):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1, max_length=256)]
    content: str | Items[TextBlock] | None = None
    is_error: bool | None = None
    toolset_name: None = None


UserBlock = Annotated[
    _Text | Annotated[ToolResultBlock, Tag("<tool_result>")],
    _one_of("must be a block of type text or tool_result; images and documents are not read here"),
]
AssistantBlock = Annotated[
    _Text
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")],
    _one_of("must be a block of type text, thinking, redacted_thinking or tool_use"),
]


class SystemTurn(Part):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: str | Items[TextBlock]


class UserTurn(Part):
    """A user's turn, tools' results with it."""

    role: Literal["user"]
    content: str | Annotated[Items[UserBlock], Field(min_length=1)]


class AssistantTurn(Part):
    """An assistant's turn."""

    role: Literal["assistant"]
    content: str | Items[AssistantBlock]


Turn = Annotated[
    Annotated[UserTurn, Tag("<user>")]
    | Annotated[AssistantTurn, Tag("<assistant>")]
    | Annotated[SystemTurn, Tag("<system>")],
    _one_of("must be a message whose role is user, assistant or system"),
]


class ClientTool(Part):
    """A tool of the client's own."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: Items[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    input_examples: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolChoice(Part):
    """Whether tools are called; ``tool`` asks for the one of this ``name``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Part):
    """Whether the model thinks first; how long it does is the model's own affair."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Part):
    """A schema that the answer's text fits."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Part):
    """How the answer is made."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Part):
    """Who asks; a split alias keeps one user on one side."""

    user_id: Annotated[str, Field(max_length=1024)] | None = None


class CountTokensRequest(ModelBody):
    """The body of ``POST /v1/messages/count_tokens``: what decides a prompt."""

    prompt_field: ClassVar[str] = "messages"
    accepted: ClassVar[frozenset[str]] = ACCEPTED - {"metadata"}
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL

    messages: Annotated[Items[Turn], Field(min_length=1)]
    stream: None = None
    system: str | Items[TextBlock] | None = None
    tools: Items[ClientTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """The body of ``POST /v1/messages``. The last three fields are our own."""

    stream: bool | None = None  # type: ignore[assignment]
    max_tokens: Annotated[int, Field(ge=0)]
    metadata: Metadata | None = None
    stop_sequences: Items[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None

    @property
    def user(self) -> str | None:
        """Who asks, by the name that other endpoints have for it."""
        return None if self.metadata is None else self.metadata.user_id
