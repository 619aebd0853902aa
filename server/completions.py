"""``POST /v1/completions``: from body to choices, from choices to text completion shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from ..engine.types import TokenLogprobs
from ..gateway.fleet.resume import ResumedChoice
from .access import Tenant
from .answer import Answer, ChoiceText, shows
from .catalog import ServedModel
from .errors import ApiError, bad_field
from .fleet.keys_choices import key_completion
from .generation import ChoiceDelta, Terms, expand_choices
from .logprobs import completion_logprobs, num_offset_characters
from .openai import CompletionRequest
from .sampling import COMPLETION_MAX_TOKENS, fit_max_tokens, sampling_params, with_seed
from .services import Services
from .text.tokenizer import Tokenizer
from .wire import (
    DONE_EVENT,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
    encode_event,
    error_event,
)


async def open_completion(
    services: Services, body: CompletionRequest, model: ServedModel, tenant: Tenant
) -> CompletionWriter:
    """Check a text completion and lay out its choices; raises ApiError for what is refused."""
    params = sampling_params(body, services.sampling.of(model))
    prompts = await services.prompts.completion(
        body.prompt, body.add_special_tokens is not False, model
    )
    if params.n * len(prompts) > services.sampling.limits.max_sequences:
        raise bad_field(
            "n",
            f"{params.n} choices of {len(prompts)} prompts are more than "
            f"{services.sampling.limits.max_sequences} answers",
        )
    defaults = services.sampling.defaults
    fitted = [
        fit_max_tokens(
            # Each prompt draws for itself, so that equal prompts do not get equal answers.
            with_seed(params),
            len(prompt.token_ids),
            services.sampling.max_model_len,
            default=defaults.max_tokens or COMPLETION_MAX_TOKENS,
        )
        for prompt in prompts
    ]
    pairs = [(prompt.token_ids, one) for prompt, one in zip(prompts, fitted, strict=True)]
    choices = expand_choices(pairs, model.digest, Terms.of(body, tenant))
    choices = key_completion(
        services.prefix_keys, body, model, prompts, choices, services.tokenizer
    )
    answer = Answer.open("cmpl", body, model, prompts, choices)
    tokenizer = model.tokenizer or services.tokenizer
    return CompletionWriter(answer, tokenizer, echo=bool(body.echo))


class CompletionWriter:
    """Text completion shapes for one answer."""

    done = DONE_EVENT

    def __init__(self, answer: Answer, tokenizer: Tokenizer, echo: bool) -> None:
        self.answer = answer
        self._tokenizer = tokenizer
        self._echoes = [
            self._echo(prompt_index) if echo else "" for prompt_index in range(len(answer.prompts))
        ]
        self._opened: set[int] = set()
        self._text_offsets = [0] * len(answer.choices)

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Go on with ``answer``: what was sent has its echo, and offsets go on behind it."""
        self.answer = answer
        for choice in sent:
            self._opened.add(choice.index)
            if answer.num_logprobs is not None:
                offset = num_offset_characters(self._tokenizer, choice.token_ids)
                self._text_offsets[choice.index] = offset

    def _echo(self, prompt_index: int) -> str:
        prompt = self.answer.prompts[prompt_index]
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids)

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> Completion:
        """The body of an answer that is not streamed."""
        return self._completion(
            [
                CompletionChoice(
                    index=index,
                    text=self._echoes[self._prompt_index(index)] + "".join(choice.text),
                    finish_reason=choice.finish_reason,
                    logprobs=self._logprobs(index, choice.logprobs),
                    stop_reason=choice.stop_reason,
                    token_ids=choice.token_ids if self.answer.return_token_ids else UNSET,
                    prompt_token_ids=self._prompt_token_ids(index),
                )
                for index, choice in enumerate(choices)
            ],
            usage,
        )

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """One event; a choice's first one opens with the prompt where that is echoed."""
        index, delta = item.choice.index, item.delta
        opening = index not in self._opened
        echo = self._echoes[item.choice.prompt_index] if opening else ""
        if not (echo or shows(item)):
            return b""
        self._opened.add(index)
        choice = CompletionChoice(
            index=index,
            text=echo + delta.text,
            finish_reason=delta.finish_reason,
            logprobs=self._logprobs(index, delta.logprobs),
            stop_reason=delta.stop_reason if delta.finish_reason else UNSET,
            token_ids=delta.token_ids if self.answer.return_token_ids else UNSET,
            prompt_token_ids=self._prompt_token_ids(index) if opening else UNSET,
        )
        usage_field = usage if self.answer.include_usage else UNSET
        return encode_event(self._completion([choice], usage_field))

    def failure(self, error: ApiError) -> bytes:
        """See ``Writer``."""
        return error_event(error)

    def closing(self, usage: Usage) -> bytes:
        """The event after the last choice, where the usage is asked for."""
        if not self.answer.include_usage:
            return b""
        return encode_event(self._completion([], usage))

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | UnsetType | None
    ) -> Completion:
        answer = self.answer
        return Completion(
            id=answer.id,
            created=answer.created,
            model=answer.model_name,
            choices=choices,
            usage=usage,
        )

    def _prompt_index(self, index: int) -> int:
        return self.answer.choices[index].prompt_index

    def _prompt_token_ids(self, index: int) -> list[int] | UnsetType:
        if not self.answer.return_token_ids:
            return UNSET
        return self.answer.prompts[self._prompt_index(index)].token_ids

    def _logprobs(
        self, index: int, positions: Sequence[TokenLogprobs] | None
    ) -> CompletionLogprobs | None:
        num_top = self.answer.num_logprobs
        if num_top is None or positions is None:
            return None
        shaped = completion_logprobs(self._tokenizer, positions, num_top, self._text_offsets[index])
        self._text_offsets[index] += sum(map(len, shaped.tokens))
        return shaped
