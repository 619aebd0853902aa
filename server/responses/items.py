"""Items that come in with ``POST /v1/responses``: messages, calls, their outputs, reasoning.

Or what stands for an item of a response that is kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ...gateway.fleet.kept_items import ITEM_REFERENCE, reference_of
from ..body_lists import Items
from ..openai import Part

ItemStatus = Literal["in_progress", "completed", "incomplete"]
NoCaller = dict[str, Any]
OfTheSdk = Annotated[Any, Field(exclude=True)]
"""What the SDK adds to what it parsed; it says the same once more."""

# A fault's path leaves names in angle brackets out.
_MESSAGE, _CALL, _OUTPUT, _REASONING, _REFERENCE = (
    f"<{name}>"
    for name in ("message", "function_call", "function_call_output", "reasoning", ITEM_REFERENCE)
)
_TEXT, _REFUSAL = "<text>", "<refusal>"
_TEXT_TYPES = ("input_text", "output_text", "text")


class InputText(Part):
    """A piece of text; what comes with output text tells nothing to a model."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: Any = None
    parsed: OfTheSdk = None


class InputRefusal(Part):
    """What a model once refused with."""

    type: Literal["refusal"]
    refusal: str


def _part_kind(part: object) -> str | None:
    kind = _type_of(part, None)
    if kind in _TEXT_TYPES:
        return _TEXT
    return _REFUSAL if kind == "refusal" else None


TextPart = Annotated[
    Annotated[InputText, Tag(_TEXT)] | Annotated[InputRefusal, Tag(_REFUSAL)],
    Discriminator(
        _part_kind,
        custom_error_type="content_type",
        custom_error_message="must be a part of type input_text, output_text or refusal",
    ),
]


class InputMessage(Part):
    """One message; one of the model's own may carry the id that it came with."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[TextPart]
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class InputCall(Part):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None
    caller: NoCaller | None = None
    parsed_arguments: OfTheSdk = None


class InputCallOutput(Part):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: str | Items[TextPart]
    id: str | None = None
    status: ItemStatus | None = None
    caller: NoCaller | None = None


class ReasoningPart(Part):
    """A piece of what the model thought."""

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class InputReasoning(Part):
    """What the model thought; what is encrypted is another server's."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Items[ReasoningPart] | None = None
    content: Items[ReasoningPart] | None = None
    encrypted_content: None = None
    status: ItemStatus | None = None


class InputReference(Part):
    """Stands for an item of a response that is kept."""

    type: Literal["item_reference"] | None = None
    id: Annotated[str, Field(min_length=1, max_length=256)]


def _item_kind(item: object) -> str | None:
    if isinstance(item, InputReference) or reference_of(item) is not None:
        return _REFERENCE
    kinds = {
        "message": _MESSAGE,
        "function_call": _CALL,
        "function_call_output": _OUTPUT,
        "reasoning": _REASONING,
        ITEM_REFERENCE: _REFERENCE,
    }
    kind = _type_of(item, "message")
    return kinds.get(kind) if isinstance(kind, str) else None


def _type_of(value: object, default: object) -> object:
    if isinstance(value, dict):
        return value.get("type", default)
    return getattr(value, "type", default if isinstance(value, Part) else None)


InputItem = Annotated[
    Annotated[InputMessage, Tag(_MESSAGE)]
    | Annotated[InputCall, Tag(_CALL)]
    | Annotated[InputCallOutput, Tag(_OUTPUT)]
    | Annotated[InputReasoning, Tag(_REASONING)]
    | Annotated[InputReference, Tag(_REFERENCE)],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message="must be an item of type message, function_call, "
        "function_call_output, reasoning or item_reference",
    ),
]
