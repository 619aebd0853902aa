"""What chats and text completions share: collecting choices, counting tokens, streaming."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from msgspec import Struct

from ..engine.types import TokenLogprobs
from ..gateway.fleet.resume import ResumedChoice, ResumeRecord
from .beam import BeamTerms
from .catalog import ServedModel
from .errors import ApiError, bad_field
from .fleet.resume_state import StreamState
from .generation import ChoiceDelta, ChoiceRequest
from .openai import SamplingFields
from .output.thought_tokens import ThinkingIds, ThoughtTally
from .prompt import Prompt
from .sampling_rules import beam_terms
from .shaping import num_entries, shaped
from .wire import Usage, encode_in_parts, make_usage


@dataclass(slots=True)
class ChoiceText:
    """One choice, as far as it has come."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str = "stop"
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


Settle = Callable[[Sequence[ChoiceText] | None, Usage], Awaitable[None]]
"""What has to happen before an answer's end is told; the texts where it is not streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response to be: its identity, its prompts and choices, and what it must carry.

    ``beams`` says how its choices are searched, if they are. ``num_events_sent`` are those of a
    stream that was begun elsewhere.
    """

    id: str
    created: int
    model: ServedModel
    model_name: str
    prompts: Sequence[Prompt]
    choices: Sequence[ChoiceRequest]
    num_logprobs: int | None
    return_token_ids: bool
    include_usage: bool
    continuous_usage: bool
    beams: BeamTerms | None = None
    reading: str = ""
    thinking: ThinkingIds | None = None
    settle: Settle | None = field(default=None, compare=False, repr=False)
    num_events_sent: int = 0

    @classmethod
    def open(
        cls,
        kind: str,
        body: SamplingFields,
        model: ServedModel,
        prompts: Sequence[Prompt],
        choices: Sequence[ChoiceRequest],
    ) -> Answer:
        """A response to ``body``; ``kind`` opens its id."""
        options = body.stream_options
        params, beams = choices[0].generation.params, beam_terms(body)
        if beams is not None and params.grammar is not None:
            raise bad_field("use_beam_search", "can't be had together with a grammar")
        return cls(
            id=f"{kind}{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            model_name=body.model or model.name,
            prompts=prompts,
            choices=choices,
            num_logprobs=params.logprobs,
            return_token_ids=bool(body.return_token_ids),
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(
                options and options.include_usage and options.continuous_usage_stats
            ),
            beams=beams,
        )


class Tally:
    """Counts an answer's tokens; the choices of one prompt share its prompt tokens.

    Of a prompt's tokens those were cached that every choice found in the cache: what one
    choice had to compute is not cached because the others then shared it. What ``record`` says
    of a stream that was begun elsewhere stays as it is.
    """

    def __init__(self, answer: Answer, record: ResumeRecord | None = None) -> None:
        sent = [choice for choice in record.choices if choice.token_ids] if record else []
        self.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in answer.prompts)
        self._num_cached_before = (record and record.num_cached_tokens) or 0
        self._num_cached: dict[int, int] = {}
        self._begun = {choice.index for choice in sent}
        self._settled = {answer.choices[index].prompt_index for index in self._begun}
        self._num_tokens = sum(len(choice.token_ids) for choice in sent)
        self._thoughts = ThoughtTally(answer.thinking)
        for choice in sent:
            self._thoughts.add(choice.index, choice.token_ids)

    def add(self, item: ChoiceDelta) -> None:
        """Count one delta."""
        num_tokens = len(item.delta.token_ids)
        self._num_tokens += num_tokens if item.num_counted is None else item.num_counted
        self._thoughts.add(item.choice.index, item.delta.token_ids)
        choice, num_cached = item.choice, item.delta.num_cached_tokens
        if choice.index not in self._begun:  # it comes with a choice's first token
            self._begun.add(choice.index)
            if choice.prompt_index in self._settled:
                return
            least = self._num_cached.get(choice.prompt_index, num_cached)
            self._num_cached[choice.prompt_index] = min(least, num_cached)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that came out of the cache, of the prompts that are under way."""
        return self._num_cached_before + sum(self._num_cached.values())

    def usage(self) -> Usage:
        """The counts so far."""
        return make_usage(
            self.num_prompt_tokens, self._num_tokens, self.num_cached_tokens, self._thoughts.count
        )


class Writer(Protocol):
    """One endpoint's shapes for an answer; ``done`` is what ends its streams."""

    answer: Answer
    done: bytes

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Go on with ``answer`` where ``sent`` ends; ``texts``: of its choices so far, by index."""

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> Struct:
        """The body of an answer that is not streamed."""

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """The events for one delta; empty when there is nothing to show yet."""

    def closing(self, usage: Usage) -> bytes:
        """The events after the last choice, such as one that carries the usage; may be none."""

    def failure(self, error: ApiError) -> bytes:
        """The event that says in a stream why it ends early."""


async def collect(deltas: AsyncGenerator[ChoiceDelta], writer: Writer) -> bytes:
    """The whole answer as JSON, once every choice has ended."""
    texts = [ChoiceText() for _ in writer.answer.choices]
    tally = Tally(writer.answer)
    async with aclosing(deltas):
        async for item in deltas:
            tally.add(item)
            _append(texts[item.choice.index], item)
    if writer.answer.settle is not None:
        await writer.answer.settle(texts, tally.usage())
    scores = sum(num_entries(text.prompt_logprobs) for text in texts) * len(texts)
    size = scores + sum(num_entries(text.logprobs) for text in texts)
    return await shaped(lambda: encode_in_parts(writer.whole(texts, tally.usage())), size)


async def stream(
    deltas: AsyncGenerator[ChoiceDelta],
    writer: Writer,
    record: ResumeRecord | None = None,
    state: StreamState | None = None,
) -> AsyncGenerator[bytes]:
    """The answer as events, without the closing ``[DONE]``; each item is whole events.

    ``record`` is what the client has of it already, and ``state`` describes the events.
    """
    tally = Tally(writer.answer, record)
    continuous = writer.answer.continuous_usage
    async with aclosing(deltas):
        async for item in deltas:
            tally.add(item)
            usage = tally.usage() if continuous else None
            chunk = partial(writer.chunk, item, usage)
            events = await shaped(chunk, num_entries(item.delta.prompt_logprobs))
            if state is not None:
                events = state.with_choice(
                    events, item.choice.index, item.delta, tally.num_cached_tokens
                )
            if events:
                yield events
    if not (record and record.usage_sent):
        if writer.answer.settle is not None:
            await writer.answer.settle(None, tally.usage())
        events = writer.closing(tally.usage())
        if events:
            yield events if state is None else state.with_usage(events)


def shows(item: ChoiceDelta) -> bool:
    """Whether a delta makes an event.

    Tokens without text do too, as in vLLM: a reader, and a proxy between, sees that the answer
    goes on.
    """
    delta = item.delta
    return bool(delta.text or delta.token_ids or delta.finish_reason)


def _append(choice: ChoiceText, item: ChoiceDelta) -> None:
    delta = item.delta
    choice.text.append(delta.text)
    choice.token_ids += delta.token_ids
    choice.logprobs += delta.logprobs or ()
    choice.prompt_logprobs = choice.prompt_logprobs or delta.prompt_logprobs
    if delta.finish_reason is not None:
        choice.finish_reason = delta.finish_reason
        choice.stop_reason = delta.stop_reason
