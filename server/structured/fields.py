"""How a request says what its answer has to match: OpenAI's ``response_format``, vLLM's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from ..body_lists import Items

_SCHEMA = WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "boolean"}]})
_SCHEMA_OR_TEXT = WithJsonSchema(
    {"anyOf": [{"type": "object"}, {"type": "boolean"}, {"type": "string"}]}
)

JsonSchema = Annotated[Any, _SCHEMA]
"""A JSON schema, checked where it is read; ``true`` allows any value."""

SchemaOrText = Annotated[Any, _SCHEMA_OR_TEXT]
"""The same, or its text."""


class _Part(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, populate_by_name=True
    )


class NamedSchema(_Part):
    """A JSON schema as OpenAI takes it; ``strict`` false ignores what of it is not supported."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[JsonSchema, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(_Part):
    """Any text, any JSON object, or JSON that ``json_schema`` describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(_Part):
    """vLLM's field: exactly one of the first five; the rest go with JSON.

    ``json`` is a schema, or its text; ``grammar`` is Lark (llguidance's dialect) or GBNF.
    """

    json_: Annotated[SchemaOrText, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[Items[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None
