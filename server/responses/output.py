"""A response's output: items made of the parts of the model's text, and the events of their making.

The same parts make the same items and ids on each replica, streamed or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ...gateway.fleet.kept_items import item_id
from ..output.parts import (
    ContentText,
    OutputPart,
    ToolCallArguments,
    ToolCallBegin,
    call_id,
)
from ..output.parts import ReasoningText as Thought
from ..wire import ChatTokenLogprob
from .events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from .wire import (
    CallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)

Logprobs = Sequence[ChatTokenLogprob]


class OpenItem(Protocol):
    """An item that grows."""

    def begin(self) -> list[Event]:
        """It is there."""

    def add(self, text: str, logprobs: Logprobs | None) -> list[Event]:
        """It has more text; ``logprobs`` None: they are lost."""

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        """It is whole, or cut off."""


class OpenMessage:
    """A message that grows."""

    def __init__(self, item_id: str, index: int) -> None:
        self._id, self._index = item_id, index
        self._text: list[str] = []
        self._logprobs: list[ChatTokenLogprob] | None = []

    def begin(self) -> list[Event]:
        """See ``OpenItem``."""
        return [
            ItemAdded(output_index=self._index, item=MessageItem(id=self._id)),
            PartAdded(item_id=self._id, output_index=self._index, part=OutputText()),
        ]

    def add(self, text: str, logprobs: Logprobs | None) -> list[Event]:
        """See ``OpenItem``."""
        self._text.append(text)
        if logprobs is None:
            self._logprobs = None
        elif self._logprobs is not None:
            self._logprobs += logprobs
        shown = list(logprobs or ())
        return [TextDelta(item_id=self._id, output_index=self._index, delta=text, logprobs=shown)]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        """See ``OpenItem``."""
        index, text = self._index, "".join(self._text)
        logprobs = self._logprobs or []
        part = OutputText(text, logprobs=logprobs)
        item = MessageItem(id=self._id, status=status, content=[part])
        return item, [
            TextDone(item_id=self._id, output_index=index, text=text, logprobs=logprobs),
            PartDone(item_id=self._id, output_index=index, part=part),
            ItemDone(output_index=index, item=item),
        ]


class OpenReasoning:
    """Reasoning that grows."""

    def __init__(self, item_id: str, index: int) -> None:
        self._id, self._index = item_id, index
        self._text: list[str] = []

    def begin(self) -> list[Event]:
        """See ``OpenItem``."""
        return [
            ItemAdded(output_index=self._index, item=ReasoningItem(id=self._id)),
            PartAdded(item_id=self._id, output_index=self._index, part=ReasoningText()),
        ]

    def add(self, text: str, logprobs: Logprobs | None) -> list[Event]:
        """See ``OpenItem``."""
        self._text.append(text)
        return [ReasoningDelta(item_id=self._id, output_index=self._index, delta=text)]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        """See ``OpenItem``."""
        index, part = self._index, ReasoningText("".join(self._text))
        item = ReasoningItem(id=self._id, status=status, content=[part])
        return item, [
            ReasoningDone(item_id=self._id, output_index=index, text=part.text),
            PartDone(item_id=self._id, output_index=index, part=part),
            ItemDone(output_index=index, item=item),
        ]


class OpenCall:
    """A call whose arguments grow."""

    def __init__(self, item_id: str, index: int, call_id: str, name: str) -> None:
        self._index = index
        self._item = CallItem(id=item_id, call_id=call_id, name=name)
        self._arguments: list[str] = []

    def begin(self) -> list[Event]:
        """See ``OpenItem``."""
        return [ItemAdded(output_index=self._index, item=self._item)]

    def add(self, text: str, logprobs: Logprobs | None) -> list[Event]:
        """See ``OpenItem``."""
        self._arguments.append(text)
        return [ArgumentsDelta(item_id=self._item.id, output_index=self._index, delta=text)]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        """See ``OpenItem``."""
        begun, arguments = self._item, "".join(self._arguments)
        item = CallItem(
            id=begun.id,
            call_id=begun.call_id,
            name=begun.name,
            arguments=arguments,
            status=status,
        )
        done = ArgumentsDone(
            item_id=item.id, output_index=self._index, name=item.name, arguments=arguments
        )
        return item, [done, ItemDone(output_index=self._index, item=item)]


class OutputBuilder:
    """Makes ``items`` of the parts of one answer; what it returns are their events."""

    def __init__(self, answer_id: str) -> None:
        self.items: list[OutputItem] = []
        self._answer_id = answer_id
        self._open: OpenItem | None = None
        self._kind: type[OutputPart] | None = None

    @property
    def reasoning(self) -> str:
        """All that the model thought, in the items that are whole."""
        items = [item for item in self.items if isinstance(item, ReasoningItem)]
        return "".join(part.text for item in items for part in item.content)

    def feed(self, parts: Iterable[OutputPart], logprobs: Logprobs | None = ()) -> list[Event]:
        """Take more parts; ``logprobs`` are those of their content, None where they are lost."""
        events: list[Event] = []
        for part in merged(parts):
            if isinstance(part, ToolCallBegin):
                events += self._begin(part)
                continue
            if self._kind is not type(part):
                events += self._begin(part)
            assert self._open is not None
            events += self._open.add(part.text, logprobs)
            if isinstance(part, ContentText):
                logprobs = None if logprobs is None else ()
        return events

    def finish(self, *, is_cut: bool) -> list[Event]:
        """The answer is over; one without any item has an empty message."""
        events: list[Event] = []
        if self._open is None and not self.items:
            events += self._begin(ContentText(""))
        return events + self._end("incomplete" if is_cut else "completed")

    def _begin(self, part: OutputPart) -> list[Event]:
        events, index = self._end("completed"), len(self.items)
        if isinstance(part, ToolCallBegin):
            calls = call_id(self._answer_id, 0, part.index)
            self._open = OpenCall(self._item_id("fc", index), index, calls, part.name)
            self._kind = ToolCallArguments
        elif isinstance(part, Thought):
            self._open, self._kind = OpenReasoning(self._item_id("rs", index), index), Thought
        else:
            self._open, self._kind = OpenMessage(self._item_id("msg", index), index), ContentText
        return events + self._open.begin()

    def _end(self, status: ItemStatus) -> list[Event]:
        if self._open is None:
            return []
        item, events = self._open.end(status)
        self.items.append(item)
        self._open = self._kind = None
        return events

    def _item_id(self, kind: str, index: int) -> str:
        return item_id(kind, self._answer_id, "output", index)


def merged(parts: Iterable[OutputPart]) -> list[OutputPart]:
    """Neighbours of one kind as one part; none are empty but beginnings of calls."""
    whole: list[OutputPart] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(part, ToolCallBegin):
            whole.append(part)
        elif not part.text:
            continue
        elif isinstance(part, ContentText) and isinstance(last, ContentText):
            whole[-1] = ContentText(last.text + part.text)
        elif isinstance(part, Thought) and isinstance(last, Thought):
            whole[-1] = Thought(last.text + part.text)
        elif isinstance(part, ToolCallArguments) and isinstance(last, ToolCallArguments):
            whole[-1] = ToolCallArguments(part.index, last.text + part.text)
        else:
            whole.append(part)
    return whole
