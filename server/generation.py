"""One client request as engine requests: started together, merged in the order of arrival."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ..engine.types import GenerationRequest, SamplingParams, TokenOutput
from .access import Tenant
from .catalog import ServedModel
from .choice_trace import ChoiceTrace, ChoiceTracing
from .errors import internal_error, overloaded, refused, unavailable
from .fleet.keys import AnswerKeys
from .metrics import ChoiceTimer, ServerMetrics
from .openai import SamplingFields
from .structured.vocabularies import Vocabularies
from .text.detokenizer import Detokenizer, TextDelta, Watch
from .text.tokenizer import Tokenizer

# A client that reads slowly stops its own request here, not the memory of the server.
MERGE_QUEUE_SIZE = 64

Generate = Callable[[GenerationRequest], AsyncGenerator[TokenOutput]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a request is computed: who is charged, in what order, sharing with whom."""

    tenant: Tenant = field(default_factory=Tenant)
    priority: int = 0
    cache_salt: str | None = None

    @classmethod
    def of(cls, body: SamplingFields, tenant: Tenant) -> Terms:
        """The terms that ``tenant``'s request asks for."""
        priority = (body.priority or 0) + tenant.priority
        return cls(tenant=tenant, priority=priority, cache_salt=body.cache_salt)


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """A choice of one prompt; ``index`` is its place in the response.

    ``keys`` makes what gateways find the answer's KV by. ``shown_token_ids`` are special tokens
    that its text has all the same; ``new_watch`` makes what may end it before the model does.
    """

    index: int
    prompt_index: int
    generation: GenerationRequest
    keys: AnswerKeys | None = field(default=None, compare=False, repr=False)
    shown_token_ids: frozenset[int] = frozenset()
    new_watch: Callable[[], Watch] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What arrived for one choice; ``num_counted`` tokens are in the usage, None: the delta's."""

    choice: ChoiceRequest
    delta: TextDelta
    num_counted: int | None = None


def expand_choices(
    prompts: Sequence[tuple[list[int], SamplingParams]],
    adapter: str | None,
    terms: Terms | None = None,
    *,
    each_scores_prompt: bool = False,
) -> list[ChoiceRequest]:
    """Every choice of every prompt, prompt by prompt; ``params.n`` choices each.

    The first choice of a prompt has its logprobs for all, or each one on its own.
    """
    terms = terms or Terms()
    choices: list[ChoiceRequest] = []
    for prompt_index, (token_ids, params) in enumerate(prompts):
        single = replace(params, n=1)
        for choice_index in range(params.n):
            if choice_index == 1 and not each_scores_prompt:
                single = replace(single, prompt_logprobs=None)
            generation = GenerationRequest(
                request_id=uuid.uuid4().hex,
                prompt_token_ids=token_ids,
                params=single,
                adapter=adapter,
                choice_index=choice_index,
                priority=terms.priority,
                tenant=terms.tenant.name,
                weight=terms.tenant.weight,
                cache_salt=terms.cache_salt,
                cache_group=terms.tenant.cache_group,
            )
            choices.append(ChoiceRequest(len(choices), prompt_index, generation))
    return choices


class Generator:
    """Runs choices on the engine behind ``generate``; ``tokenizer`` is the base's."""

    def __init__(
        self,
        generate: Generate,
        tokenizer: Tokenizer,
        metrics: ServerMetrics,
        tracing: ChoiceTracing | None = None,
        vocabularies: Vocabularies | None = None,
    ) -> None:
        self._generate = generate
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._tracing = tracing
        self._vocabularies = vocabularies or Vocabularies()

    def detokenizer(self, choice: ChoiceRequest, model: ServedModel) -> Detokenizer:
        """What turns a choice's tokens into text."""
        generation = choice.generation
        return Detokenizer(
            model.tokenizer or self._tokenizer,
            generation.prompt_token_ids,
            generation.params,
            choice.shown_token_ids,
            choice.new_watch and choice.new_watch(),
        )

    async def run(
        self,
        choices: Sequence[ChoiceRequest],
        model: ServedModel,
        arrival: float,
        replayed: Mapping[int, Detokenizer] = MappingProxyType({}),
    ) -> AsyncGenerator[ChoiceDelta]:
        """Deltas of all choices as they come; closing this aborts what still runs.

        ``replayed`` are the detokenizers of choices that were begun elsewhere, by index. Raises
        ApiError for a request that fails, EngineDeadError when the engine is gone.
        """
        sources = [
            self._run_choice(
                choice,
                model,
                arrival,
                replayed.get(choice.index) or self.detokenizer(choice, model),
            )
            for choice in choices
        ]
        merged = sources[0] if len(sources) == 1 else _merge(sources)
        with self._metrics.in_flight(model, _tenant_of(choices[0].generation)):
            async with aclosing(merged):
                async for delta in merged:
                    yield delta

    async def _run_choice(
        self, choice: ChoiceRequest, model: ServedModel, arrival: float, detokenizer: Detokenizer
    ) -> AsyncGenerator[ChoiceDelta]:
        generation = choice.generation
        with (
            self._metrics.time_choice(model.name, generation, arrival) as timer,
            self._traced(generation) as trace,
        ):
            tokenizer = model.tokenizer or self._tokenizer
            generation = await self._vocabularies.attach(
                generation, tokenizer, choice.shown_token_ids
            )
            # Closing the engine's iterator is what aborts a request that a stop string ended.
            async with aclosing(self._generate(generation)) as outputs:
                async for output in outputs:
                    if trace is not None:
                        trace.take(output)
                    raise_for(output)
                    if output.queue_seconds is not None:
                        timer.queued(output.queue_seconds)
                    delta = detokenizer.push(output)
                    _count(timer, delta)
                    _key(choice, delta)
                    yield ChoiceDelta(choice, delta)
                    if detokenizer.finished:
                        return

    def _traced(self, generation: GenerationRequest) -> AbstractContextManager[ChoiceTrace | None]:
        return nullcontext() if self._tracing is None else self._tracing.trace(generation)


def _tenant_of(generation: GenerationRequest) -> Tenant:
    return Tenant(generation.tenant, generation.weight)


def _key(choice: ChoiceRequest, delta: TextDelta) -> None:
    """Of an answer that was begun elsewhere the text is not all here."""
    if choice.keys is not None and not choice.generation.output_token_ids:
        choice.keys.add(delta.text, delta.token_ids, delta.finish_reason)


def _count(timer: ChoiceTimer, delta: TextDelta) -> None:
    if delta.token_ids:
        timer.tokens(len(delta.token_ids), delta.num_cached_tokens)
    if delta.finish_reason is not None:
        timer.finish(delta.finish_reason)


def raise_for(output: TokenOutput) -> None:
    """Raise what a client gets to see of an output without tokens; nothing for any other."""
    if output.finish_reason == "error":
        error = output.error or "no reason was given"
        if output.error_kind == "refused":
            raise refused(error)
        if output.error_kind == "overloaded":
            raise overloaded(error, output.retry_after)
        raise internal_error(f"The engine failed on this request: {error}")
    if output.finish_reason == "abort":
        raise unavailable("The request was ended by the server.", "aborted")


async def _merge(
    sources: Sequence[AsyncGenerator[ChoiceDelta]],
) -> AsyncGenerator[ChoiceDelta]:
    """Items of all sources as they come; the first failure ends all of them."""
    queue: asyncio.Queue[ChoiceDelta | Exception | None] = asyncio.Queue(MERGE_QUEUE_SIZE)

    async def pump(source: AsyncGenerator[ChoiceDelta]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put(item)
            await queue.put(None)
        except Exception as error:  # handed to the reader, who raises it
            await queue.put(error)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        num_running = len(pumps)
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
