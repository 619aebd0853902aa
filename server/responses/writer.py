"""Responses' shapes for one answer, whole and as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus

import msgspec
from msgspec.structs import replace as changed

from ...engine.types import TokenLogprobs
from ...gateway.fleet.kept_responses import KeptResponse
from ...gateway.fleet.resume import ResumedChoice
from ..access import Tenant
from ..answer import Answer, ChoiceText
from ..chat import ChatAnswer
from ..errors import ApiError
from ..generation import ChoiceDelta
from ..logprobs import chat_logprobs
from ..output.parts import OutputPart
from ..wire import ChatTokenLogprob, Usage
from .events import (
    Completed,
    Created,
    Event,
    Failed,
    Incomplete,
    InProgress,
    encode_events,
)
from .output import OutputBuilder
from .shape import begun_response, usage_of
from .store import ResponseStore
from .turn import Turn
from .wire import IncompleteDetails, ResponseBody, ResponseError


class ResponseWriter:
    """Writes one response; it is kept in ``store`` before its end is told."""

    done = b""

    def __init__(self, chat: ChatAnswer, turn: Turn, store: ResponseStore, tenant: Tenant) -> None:
        self._chat = chat
        self._turn = turn
        self._store = store
        self._tenant = tenant
        self._sequence_number = 0
        self._is_opened = False
        self._pending: list[TokenLogprobs] = []
        self._finish_reason = "stop"
        self._final: ResponseBody | None = None
        self._begin(replace(chat.answer, settle=self.settle))

    def _begin(self, answer: Answer) -> None:
        self.answer = answer
        self._parser = self._chat.parser(0)
        self._builder = OutputBuilder(answer.id)
        self._begun = begun_response(answer, self._turn.body)

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Make again what was sent.

        The log-probabilities of its tokens are lost: what repeats those of a whole text has none.
        """
        self._begin(answer)
        if not sent:
            return
        self._is_opened = True
        self._sequence_number = answer.num_events_sent
        self._builder.feed(self._parser.push(texts[0]), None)
        if sent[0].finish_reason is not None:
            self._finish(sent[0].finish_reason)

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> ResponseBody:
        """The response; ``settle`` has made it."""
        assert self._final is not None
        return self._final

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """The events of one delta, after the opening ones at first."""
        delta = item.delta
        events: list[Event] = []
        if not self._is_opened:
            self._is_opened = True
            events += [Created(response=self._begun), InProgress(response=self._begun)]
        shown = _without_end(delta.logprobs, delta.finish_reason, delta.stop_reason)
        events += self._feed(delta.text, shown)
        if delta.finish_reason is not None:
            events += self._finish(delta.finish_reason)
        return self._numbered(events)

    def closing(self, usage: Usage) -> bytes:
        """The event that carries the whole response; ``settle`` has made it."""
        final = self._final
        assert final is not None
        kind = Incomplete if final.status == "incomplete" else Completed
        return self._numbered([kind(response=final)])

    def failure(self, error: ApiError) -> bytes:
        """The event that carries the response as far as it came, and why it ends there."""
        response = changed(
            self._begun, status="failed", error=_as_error(error), output=self._builder.items
        )
        return self._numbered([Failed(response=response)])

    async def settle(self, texts: Sequence[ChoiceText] | None, usage: Usage) -> None:
        """Make the whole response, and keep it if that is asked for."""
        if texts is not None:
            self._take(texts[0])
        thought = self._builder.reasoning
        num_reasoning = 0
        if thought:
            ids = await asyncio.to_thread(self._chat.tokenizer.encode, thought, False)
            num_reasoning = min(len(ids), usage.completion_tokens)
        is_cut = self._finish_reason == "length"
        self._final = changed(
            self._begun,
            status="incomplete" if is_cut else "completed",
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails("max_output_tokens") if is_cut else None,
            output=self._builder.items,
            usage=usage_of(usage, num_reasoning),
        )
        if self._final.store and not await self._keep(self._final):
            self._final = changed(self._final, store=False)

    async def _keep(self, response: ResponseBody) -> bool:
        turn = self._turn
        kept = KeptResponse(
            response=msgspec.to_builtins(response),
            items=turn.kept_items(self.answer.id),
            num_before=len(turn.history),
        )
        return await self._store.keep(self._tenant.name, kept)

    def _take(self, choice: ChoiceText) -> None:
        """All of an answer that was not streamed, in its pieces where they are a token each."""
        positions = _without_end(choice.logprobs, choice.finish_reason, choice.stop_reason)
        if len(choice.text) == len(choice.logprobs):
            for index, text in enumerate(choice.text):
                self._feed(text, positions[index : index + 1])
        else:
            self._feed("".join(choice.text), positions)
        self._finish(choice.finish_reason)

    def _feed(self, text: str, positions: Sequence[TokenLogprobs]) -> list[Event]:
        return self._build(self._parser.push(text) if text else [], positions)

    def _finish(self, finish_reason: str) -> list[Event]:
        self._finish_reason = finish_reason
        events = self._build(self._parser.finish(), ())
        return events + self._builder.finish(is_cut=finish_reason == "length")

    def _build(
        self, parts: Sequence[OutputPart], positions: Sequence[TokenLogprobs]
    ) -> list[Event]:
        """The events of new parts; tokens of text that is held back wait with it."""
        self._pending += positions
        if not parts:
            return []
        logprobs, self._pending = self._logprobs(self._pending), []
        return self._builder.feed(parts, logprobs)

    def _logprobs(self, positions: Sequence[TokenLogprobs]) -> list[ChatTokenLogprob]:
        num_top = self.answer.num_logprobs
        if num_top is None or not positions:
            return []
        return chat_logprobs(self._chat.tokenizer, positions, num_top).content

    def _numbered(self, events: list[Event]) -> bytes:
        for event in events:
            event.sequence_number = self._sequence_number
            self._sequence_number += 1
        return encode_events(events)


def _without_end(
    positions: Sequence[TokenLogprobs] | None, finish_reason: str | None, stop_reason: object
) -> Sequence[TokenLogprobs]:
    """Without the token that ended the answer: it is no part of the text."""
    is_end = finish_reason == "stop" and not isinstance(stop_reason, str)
    return (positions or ())[:-1] if is_end else positions or ()


def _as_error(error: ApiError) -> ResponseError:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ResponseError("server_error", error.message)
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return ResponseError("rate_limit_exceeded", error.message)
    return ResponseError("invalid_prompt", error.message)
