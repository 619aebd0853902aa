"""``POST /v1/completions``: from body to choices."""

from __future__ import annotations

from dataclasses import replace

from ..engine.types import SamplingParams
from .access import Tenant
from .answer import Answer
from .catalog import ServedModel
from .completion_writer import CompletionWriter
from .errors import bad_field
from .fleet.keys_choices import key_completion
from .generation import Terms, expand_choices
from .openai import CompletionRequest
from .prompt import Prompt
from .prompt_cut import truncated
from .sampling import COMPLETION_MAX_TOKENS, fit_max_tokens, sampling_params, with_seed
from .sampling_rules import check_prompt_scores
from .services import Services
from .structured.open import with_grammar


async def open_completion(
    services: Services, body: CompletionRequest, model: ServedModel, tenant: Tenant
) -> CompletionWriter:
    """Check a text completion and lay out its choices; raises ApiError for what is refused."""
    params = _with_best_of(sampling_params(body, services.sampling.of(model)), body)
    params = await with_grammar(params, body, services, tenant)
    prompts = await services.prompts.completion(
        body.prompt, body.add_special_tokens is not False, model
    )
    num_choices, limits = _num_choices(params, body), services.sampling.limits
    if num_choices * len(prompts) > limits.max_sequences:
        raise bad_field(
            "n" if body.best_of is None else "best_of",
            f"{num_choices} choices of {len(prompts)} prompts are more than "
            f"{limits.max_sequences} answers",
        )
    max_model_len = services.sampling.max_model_len
    prompts = [truncated(prompt, body, params.max_tokens, max_model_len) for prompt in prompts]
    num_tokens = [len(prompt.token_ids) for prompt in prompts]
    check_prompt_scores(body, num_tokens, body.n or 1, limits)
    pairs = [_fitted(services, params, prompt) for prompt in prompts]
    choices = expand_choices(
        pairs, model.digest, Terms.of(body, tenant), each_scores_prompt=bool(body.stream)
    )
    choices = key_completion(
        services.prefix_keys, body, model, prompts, choices, services.tokenizer
    )
    answer = Answer.open("cmpl-", body, model, prompts, choices)
    return CompletionWriter(answer, model.tokenizer or services.tokenizer, body)


def _with_best_of(params: SamplingParams, body: CompletionRequest) -> SamplingParams:
    """``best_of`` choices, which are compared by their logprobs; beams are fewer than they."""
    if body.best_of is None or body.use_beam_search:
        return params
    compared = 0 if params.logprobs is None else params.logprobs
    return replace(params, n=body.best_of, logprobs=compared)


def _num_choices(params: SamplingParams, body: CompletionRequest) -> int:
    """How many sequences one prompt may have under way."""
    return max(params.n, body.best_of or 1)


def _fitted(
    services: Services, params: SamplingParams, prompt: Prompt
) -> tuple[list[int], SamplingParams]:
    # Each prompt draws for itself, so that equal prompts do not get equal answers.
    fitted = fit_max_tokens(
        with_seed(params),
        len(prompt.token_ids),
        services.sampling.max_model_len,
        default=services.sampling.defaults.max_tokens or COMPLETION_MAX_TOKENS,
    )
    return prompt.token_ids, fitted
