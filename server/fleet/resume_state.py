"""Comments in a stream by which another replica can go on with it; see ``gateway.fleet.resume``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ...gateway.fleet.resume import (
    COMMENT,
    ChoiceProgress,
    Failure,
    ResumedChoice,
    StreamComment,
    StreamOpening,
)
from ..errors import ApiError
from ..text.detokenizer import TextDelta

_END_OF_EVENT = b"\n\n"
_ENCODER = msgspec.json.Encoder()


class StreamState:
    """Puts in front of a stream's events what they add; the events stay as they are.

    ``sent`` is what the client has when the stream is resumed. The first comment holds the
    opening and the number of prompt tokens.
    """

    def __init__(
        self, opening: StreamOpening, num_prompt_tokens: int, sent: Iterable[ResumedChoice] = ()
    ) -> None:
        self._first: dict[str, Any] = {"opening": opening, "num_prompt_tokens": num_prompt_tokens}
        self._num_characters = {choice.index: choice.num_characters for choice in sent}
        self._num_cached_tokens: int | None = None

    def with_choice(
        self, events: bytes, index: int, delta: TextDelta, num_cached_tokens: int
    ) -> bytes:
        """The events of one delta behind their comment.

        A delta may have none, as where its text may be the beginning of a mark: then the comment
        stands alone, so that its tokens need not be computed again.
        """
        if not (events or delta.text or delta.token_ids or delta.finish_reason):
            return b""
        num_characters = self._num_characters.get(index, 0) + len(delta.text)
        self._num_characters[index] = num_characters
        progress = ChoiceProgress(
            index, delta.token_ids, num_characters, delta.finish_reason, delta.stop_reason
        )
        is_news = num_cached_tokens != self._num_cached_tokens
        self._num_cached_tokens = num_cached_tokens
        return self._comment(
            events, choices=[progress], num_cached_tokens=num_cached_tokens if is_news else None
        )

    def with_usage(self, event: bytes) -> bytes:
        """The event that carries the usage behind its comment."""
        return self._comment(event, usage_sent=True)

    def with_failure(self, event: bytes, error: ApiError) -> bytes:
        """The event that ends a stream with an error behind its comment."""
        return self._comment(event, failure=Failure(error.status, error.code))

    def _comment(self, events: bytes, **fields: Any) -> bytes:
        first, self._first = self._first, {}
        # JSON holds no line feeds, so each empty line is an event's end.
        comment = StreamComment(events.count(_END_OF_EVENT), **first, **fields)
        return COMMENT + _ENCODER.encode(comment) + _END_OF_EVENT + events
