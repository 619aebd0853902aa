"""The events of a streamed response, as OpenAI's SDKs read them."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..wire import ChatTokenLogprob
from .wire import OutputItem, OutputText, ReasoningText, ResponseBody


class Event(Struct, kw_only=True, tag_field="type"):
    """One event; ``sequence_number`` is given when it goes out."""

    sequence_number: int = 0


class Created(Event, kw_only=True, tag="response.created"):
    """The response begins."""

    response: ResponseBody


class InProgress(Event, kw_only=True, tag="response.in_progress"):
    """It is being generated."""

    response: ResponseBody


class Completed(Event, kw_only=True, tag="response.completed"):
    """It is whole."""

    response: ResponseBody


class Incomplete(Event, kw_only=True, tag="response.incomplete"):
    """It ended early."""

    response: ResponseBody


class Failed(Event, kw_only=True, tag="response.failed"):
    """It ended with an error."""

    response: ResponseBody


class ItemAdded(Event, kw_only=True, tag="response.output_item.added"):
    """An item of the output begins."""

    output_index: int
    item: OutputItem


class ItemDone(Event, kw_only=True, tag="response.output_item.done"):
    """An item is whole."""

    output_index: int
    item: OutputItem


class PartEvent(Event, kw_only=True):
    """About a part of an item's content; here each has one."""

    item_id: str
    output_index: int
    content_index: int = 0


class PartAdded(PartEvent, kw_only=True, tag="response.content_part.added"):
    """A part begins."""

    part: OutputText | ReasoningText


class PartDone(PartEvent, kw_only=True, tag="response.content_part.done"):
    """A part is whole."""

    part: OutputText | ReasoningText


class TextDelta(PartEvent, kw_only=True, tag="response.output_text.delta"):
    """More of a message's text."""

    delta: str
    logprobs: list[ChatTokenLogprob]


class TextDone(PartEvent, kw_only=True, tag="response.output_text.done"):
    """A message's whole text."""

    text: str
    logprobs: list[ChatTokenLogprob]


class ReasoningDelta(PartEvent, kw_only=True, tag="response.reasoning_text.delta"):
    """More of what the model thinks."""

    delta: str


class ReasoningDone(PartEvent, kw_only=True, tag="response.reasoning_text.done"):
    """All that it thought."""

    text: str


class ArgumentsDelta(Event, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Event, kw_only=True, tag="response.function_call_arguments.done"):
    """A call's whole arguments."""

    item_id: str
    output_index: int
    name: str
    arguments: str


_ENCODER = msgspec.json.Encoder()


def encode_events(events: list[Event]) -> bytes:
    """As server-sent events, whose names are their types."""
    return b"".join(_encode(event) for event in events)


def _encode(event: Event) -> bytes:
    name = type(event).__struct_config__.tag
    assert isinstance(name, str)
    return b"event: " + name.encode() + b"\ndata: " + _ENCODER.encode(event) + b"\n\n"
