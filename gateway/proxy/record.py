"""What a client has of a stream: whole groups of events, and the record to resume it from."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..fleet.resume import (
    COMMENT,
    ChoiceProgress,
    Failure,
    ResumedChoice,
    ResumeRecord,
    StreamComment,
    StreamOpening,
)
from ..types import Usage
from .sse import DONE, BadStream

MAX_KEPT_TOKENS = 1 << 20
"""Over all choices of a stream: 8 MiB; a longer one goes on, but can't be resumed."""

_COMMENTS = msgspec.json.Decoder(StreamComment)
_ENCODER = msgspec.json.Encoder()


class StreamRecord:
    """Sorts a replica's blocks into what goes to the client, and keeps account of it.

    A comment and the events that it describes are taken together or not at all: ``take`` gives
    bytes only for whole groups. ``fault`` then says what was wrong behind them, if anything was:
    the replica is to be left, and ``restart`` called before the next one's blocks. Every replica's
    stream ends with ``[DONE]``; without ``keeps_done`` the client does not get that.
    """

    def __init__(self, max_kept_tokens: int = MAX_KEPT_TOKENS, *, keeps_done: bool = True) -> None:
        self.is_done = False
        self.num_output_tokens = 0
        self.num_prompt_tokens: int | None = None
        self.num_cached_tokens: int | None = None
        self.last_event = b""
        self.num_events = 0
        self.fault: str | None = None
        self._max_kept_tokens, self._keeps_done = max_kept_tokens, keeps_done
        self._num_unexplained = 0
        self._opening: StreamOpening | None = None
        self._choices: dict[int, ResumedChoice] = {}
        self._usage_sent = False
        self._comment: StreamComment | None = None
        self._group: list[bytes] = []

    @property
    def can_resume(self) -> bool:
        """Whether another replica can go on from what the client has."""
        if self._num_unexplained or self.num_output_tokens > self._max_kept_tokens:
            return False
        return self._opening is not None

    def take(self, blocks: Iterable[bytes]) -> bytes:
        """What the client gets now."""
        out: list[bytes] = []
        try:
            for block in blocks:
                if block.startswith(b":"):
                    self._take_comment(block)
                else:
                    self._take_event(block, out)
        except BadStream as fault:
            self.fault = str(fault)
        return b"".join(out)

    def restart(self) -> None:
        """Forget the half group of a lost replica."""
        self.fault, self._comment, self._group = None, None, []

    def fits(self, fingerprint: str) -> bool:
        """Whether a replica of that fingerprint may be able to go on; it has the last word."""
        opening = self._opening
        return opening is not None and opening.fingerprint.startswith(f"{fingerprint}.")

    def resume_bytes(self) -> bytes:
        """The record for ``headers.RESUME``."""
        assert self._opening is not None
        return _ENCODER.encode(
            ResumeRecord(
                self._opening,
                [self._choices[index] for index in sorted(self._choices)],
                self.num_cached_tokens,
                self._usage_sent,
                self.num_events,
            )
        )

    def usage(self, num_input_tokens: int) -> Usage:
        """What was used; ``num_input_tokens`` stands in where the replica did not say."""
        known = self.num_prompt_tokens
        return Usage(
            num_input_tokens=num_input_tokens if known is None else known,
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=self.num_cached_tokens or 0,
        )

    def _take_comment(self, block: bytes) -> None:
        if not block.startswith(COMMENT):
            return
        if self._comment is not None:
            raise BadStream("a comment where an event was announced")
        try:
            comment = _COMMENTS.decode(block[len(COMMENT) :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadStream(f"a comment that can't be read: {error}") from None
        if comment.events > 0:
            self._comment = comment
        else:
            self._commit(comment)

    def _take_event(self, block: bytes, out: list[bytes]) -> None:
        comment = self._comment
        if comment is None:
            self._take_plain(block, out)
            return
        if comment.failure is not None and comment.failure.status >= 500:
            raise BadStream(_failure_text(comment.failure))
        self._group.append(block)
        if len(self._group) == comment.events:
            out.extend(self._group)
            self.num_events += comment.events
            self.last_event = block
            self._comment, self._group = None, []
            self._commit(comment)

    def _take_plain(self, block: bytes, out: list[bytes]) -> None:
        if block == DONE:
            self.is_done = True
        if block != DONE or self._keeps_done:
            out.append(block)
        if block != DONE:
            self._num_unexplained += 1
            self.last_event = block

    def _commit(self, comment: StreamComment) -> None:
        if comment.opening is not None and self._opening is None:
            self._opening = comment.opening
        if comment.num_cached_tokens is not None:
            self.num_cached_tokens = comment.num_cached_tokens
        if comment.num_prompt_tokens is not None:
            self.num_prompt_tokens = comment.num_prompt_tokens
        self._usage_sent = self._usage_sent or comment.usage_sent
        for progress in comment.choices:
            self._advance(progress)

    def _advance(self, progress: ChoiceProgress) -> None:
        choice = self._choices.get(progress.index)
        if choice is None:
            choice = self._choices[progress.index] = ResumedChoice(progress.index, [])
        self.num_output_tokens += len(progress.token_ids)
        if self.num_output_tokens <= self._max_kept_tokens:
            choice.token_ids.extend(progress.token_ids)
        choice.num_characters = progress.num_characters
        choice.finish_reason = progress.finish_reason or choice.finish_reason
        if progress.stop_reason is not None:
            choice.stop_reason = progress.stop_reason


def _failure_text(failure: Failure) -> str:
    return f"it failed ({failure.status} {failure.code or ''})".replace(" )", ")")
