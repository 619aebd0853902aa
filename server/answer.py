"""What chats and text completions share: collecting choices, counting tokens, streaming."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from ..engine.types import TokenLogprobs
from .catalog import ServedModel
from .generation import ChoiceDelta, ChoiceRequest
from .openai import SamplingFields
from .prompt import Prompt
from .wire import Usage, make_usage


@dataclass(slots=True)
class ChoiceText:
    """One choice, as far as it has come."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str = "stop"
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response to be: its identity, its prompts and choices, and what it must carry."""

    id: str
    created: int
    model: ServedModel
    prompts: Sequence[Prompt]
    choices: Sequence[ChoiceRequest]
    num_logprobs: int | None
    return_token_ids: bool
    include_usage: bool
    continuous_usage: bool

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
        return cls(
            id=f"{kind}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            prompts=prompts,
            choices=choices,
            num_logprobs=choices[0].generation.params.logprobs,
            return_token_ids=bool(body.return_token_ids),
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(
                options and options.include_usage and options.continuous_usage_stats
            ),
        )


class Tally:
    """Counts an answer's tokens; the choices of one prompt share its prompt tokens.

    Of a prompt's tokens those were cached that every choice found in the cache: what one
    choice had to compute is not cached because the others then shared it.
    """

    def __init__(self, answer: Answer) -> None:
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in answer.prompts)
        self._num_cached: dict[int, int] = {}
        self._begun: set[int] = set()
        self._num_tokens = 0

    def add(self, item: ChoiceDelta) -> None:
        """Count one delta."""
        self._num_tokens += len(item.delta.token_ids)
        choice, num_cached = item.choice, item.delta.num_cached_tokens
        if choice.index not in self._begun:  # it comes with a choice's first token
            self._begun.add(choice.index)
            least = self._num_cached.get(choice.prompt_index, num_cached)
            self._num_cached[choice.prompt_index] = min(least, num_cached)

    def usage(self) -> Usage:
        """The counts so far."""
        return make_usage(self._num_prompt_tokens, self._num_tokens, sum(self._num_cached.values()))


class Writer(Protocol):
    """One endpoint's shapes for an answer."""

    answer: Answer

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> Struct:
        """The body of an answer that is not streamed."""

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """The events for one delta; empty when there is nothing to show yet."""

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event after the last choice that carries the usage."""


async def collect(deltas: AsyncGenerator[ChoiceDelta], writer: Writer) -> Struct:
    """The whole answer, once every choice has ended."""
    texts = [ChoiceText() for _ in writer.answer.choices]
    tally = Tally(writer.answer)
    async with aclosing(deltas):
        async for item in deltas:
            tally.add(item)
            _append(texts[item.choice.index], item)
    return writer.whole(texts, tally.usage())


async def stream(deltas: AsyncGenerator[ChoiceDelta], writer: Writer) -> AsyncGenerator[bytes]:
    """The answer as events, without the closing ``[DONE]``."""
    tally = Tally(writer.answer)
    continuous = writer.answer.continuous_usage
    async with aclosing(deltas):
        async for item in deltas:
            tally.add(item)
            events = writer.chunk(item, tally.usage() if continuous else None)
            if events:
                yield events
    if writer.answer.include_usage:
        yield writer.usage_chunk(tally.usage())


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
    if delta.finish_reason is not None:
        choice.finish_reason = delta.finish_reason
        choice.stop_reason = delta.stop_reason
