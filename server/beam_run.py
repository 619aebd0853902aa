"""Beam searches over the engine, as the deltas of an answer's choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

from ..engine.types import TokenLogprobs, TokenOutput
from .access import Tenant
from .answer import Answer
from .beam import Beam, BeamSearch, BeamTerms, as_output, step_request
from .errors import bad_field, internal_error
from .generation import ChoiceDelta, ChoiceRequest, raise_for
from .metrics import ChoiceTimer
from .services import Services
from .shaping import shaped

T = TypeVar("T")

MAX_AT_ONCE = 64
"""Engine requests that one answer's searches have under way."""


async def search_beams(
    services: Services, answer: Answer, terms: BeamTerms, arrival: float
) -> AsyncGenerator[ChoiceDelta]:
    """Each choice as one delta, once the searches of all prompts are through.

    The choices of a prompt are its best beams, best first. Raises ApiError for what fails.
    """
    seats = asyncio.Semaphore(min(MAX_AT_ONCE, services.sampling.limits.max_sequences))
    by_prompt = groupby(answer.choices, key=lambda choice: choice.prompt_index)
    searches = [
        _PromptSearch(services, answer, terms, list(choices), seats) for _, choices in by_prompt
    ]
    generation = answer.choices[0].generation
    tenant = Tenant(generation.tenant, generation.weight)
    with services.metrics.in_flight(answer.model, tenant):
        for deltas in await _all([search.run(arrival) for search in searches]):
            for delta in deltas:
                yield delta


class _PromptSearch:
    """The search for the choices of one prompt."""

    def __init__(
        self,
        services: Services,
        answer: Answer,
        terms: BeamTerms,
        choices: Sequence[ChoiceRequest],
        seats: asyncio.Semaphore,
    ) -> None:
        self._services = services
        self._model = answer.model
        self._terms = terms
        self._choices = choices
        self._seats = seats
        self._generation = choices[0].generation
        self._num_cached: int | None = None

    async def run(self, arrival: float) -> list[ChoiceDelta]:
        """Search, and give the best beams to the choices."""
        info, generation = self._services.supervisor.info, self._generation
        room = info.max_model_len - len(generation.prompt_token_ids)
        search = BeamSearch(
            self._terms, generation.params, info.eos_token_ids, room, info.vocab_size
        )
        metrics = self._services.metrics
        with metrics.time_choice(self._model.name, generation, arrival) as timer:
            while not search.done:
                steps = [self._step(beam, search.num_logprobs, timer) for beam in search.live]
                search.advance(await _all(steps))
            beams = search.best(len(self._choices))
            if len(beams) < len(self._choices):
                raise bad_field("n", f"is over {len(beams)}, all the answers that there are")
            timer.finish(beams[0].finish_reason or "stop")
        # All that was computed counts, with the first choice, and never less than is shown.
        num_shown = sum(len(beam.token_ids) for beam in beams)
        num_counted = max(search.num_computed, num_shown)
        deltas = await shaped(lambda: list(map(self._delta, self._choices, beams)), num_shown)
        return [replace(one, num_counted=num_counted if one is deltas[0] else 0) for one in deltas]

    async def _step(self, beam: Beam, num_logprobs: int, timer: ChoiceTimer) -> TokenLogprobs:
        """What may come behind a beam."""
        request = step_request(self._generation, beam, num_logprobs)
        async with (
            self._seats,
            aclosing(self._services.supervisor.generate(request)) as outputs,
        ):
            async for output in outputs:
                raise_for(output)
                self._note(output, timer)
                if output.logprobs:
                    return output.logprobs[0]
        raise internal_error("The engine ended a beam without a token.")

    def _note(self, output: TokenOutput, timer: ChoiceTimer) -> None:
        if self._num_cached is None:
            self._num_cached = output.num_cached_tokens
            if output.queue_seconds is not None:
                timer.queued(output.queue_seconds)
        timer.tokens(len(output.token_ids), output.num_cached_tokens)

    def _delta(self, choice: ChoiceRequest, beam: Beam) -> ChoiceDelta:
        detokenizer = self._services.generator.detokenizer(choice, self._model)
        output = as_output(beam, choice.generation.request_id, self._num_cached or 0)
        delta = detokenizer.push(output)
        wants_logprobs = choice.generation.params.logprobs is not None
        return ChoiceDelta(choice, delta if wants_logprobs else replace(delta, logprobs=None))


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; the first failure, or leaving, ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
