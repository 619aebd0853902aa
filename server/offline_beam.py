"""Beam search without a server: the searches of all prompts go on together, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.errors import RequestError
from ..engine.loop import EngineLoop
from ..engine.types import GenerationRequest
from .batch_run import CompletionOutput, Job, RequestOutput
from .beam import Beam, BeamSearch, BeamTerms, as_output, step_request
from .offline_steps import run_each
from .text.detokenizer import Detokenizer

_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "stop": ((),),
    "logit_bias": ({},),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "allowed_token_ids": ((),),
    "bad_word_ids": ((),),
    "prompt_logprobs": (None,),
    "grammar": (None,),
}


@dataclass(slots=True)
class _Search:
    job: Job
    search: BeamSearch
    num_cached_tokens: int | None = None

    @property
    def generation(self) -> GenerationRequest:
        return self.job.choices[0].generation


def check_beams(job: Job, terms: BeamTerms) -> None:
    """Raises RequestError for what a search can't be, or could not honour."""
    params = job.choices[0].generation.params
    if len(job.choices) > 1:
        raise RequestError("n", "can't be had with beam search, which has beam_width")
    if not params.max_tokens:
        raise RequestError("max_tokens", "must be at least 1 with beam search")
    if terms.width < 1:
        raise RequestError("beam_width", "must be at least 1")
    if not -10 <= terms.length_penalty <= 10:
        raise RequestError("length_penalty", "must be between -10 and 10")
    for field, allowed in _WITHOUT_EFFECT.items():
        if getattr(params, field) not in allowed:
            raise RequestError(field, "can't be had with beam search")


def run_beams(
    engine: EngineLoop,
    jobs: Sequence[Job],
    terms: BeamTerms,
    on_done: Callable[[int], object],
) -> list[RequestOutput]:
    """The best ``terms.width`` answers to each job, best first; raises BranchlineError."""
    info = engine.info
    searches = [
        _Search(
            job,
            BeamSearch(
                terms,
                job.choices[0].generation.params,
                info.eos_token_ids,
                info.max_model_len - len(job.prompt_token_ids),
                info.vocab_size,
            ),
        )
        for job in jobs
    ]
    live = searches
    while live:
        _advance(engine, live)
        on_done(sum(one.search.done for one in live))
        live = [one for one in live if not one.search.done]
    return [_output(one, terms) for one in searches]


def _advance(engine: EngineLoop, searches: Sequence[_Search]) -> None:
    """One token further in each search."""
    requests = [
        step_request(one.generation, beam, one.search.num_logprobs)
        for one in searches
        for beam in one.search.live
    ]
    outputs = iter(run_each(engine, requests))
    for one in searches:
        reports = []
        for output in [next(outputs) for _ in one.search.live]:
            assert output.logprobs, "each step reports them"
            reports.append(output.logprobs[0])
            if one.num_cached_tokens is None:
                one.num_cached_tokens = output.num_cached_tokens
        one.search.advance(reports)


def _output(one: _Search, terms: BeamTerms) -> RequestOutput:
    job = one.job
    beams = one.search.best(terms.width)
    for index, beam in enumerate(beams):
        job.outputs[index] = _answer(one, index, beam)
    return RequestOutput(
        job.request_id,
        job.prompt,
        job.prompt_token_ids,
        job.adapter,
        [job.outputs[index] for index in range(len(beams))],
        one.num_cached_tokens or 0,
    )


def _answer(one: _Search, index: int, beam: Beam) -> CompletionOutput:
    generation = one.generation
    detokenizer = Detokenizer(one.job.tokenizer, generation.prompt_token_ids, generation.params)
    delta = detokenizer.push(as_output(beam, generation.request_id, 0))
    wants_logprobs = generation.params.logprobs is not None
    return CompletionOutput(
        index,
        delta.text,
        list(beam.token_ids),
        beam.logprobs if wants_logprobs else None,
        beam.finish_reason or "stop",
        delta.stop_reason,
        cumulative_logprob=beam.total,
    )
