"""Text completion shapes for an answer, whole and in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from msgspec import UNSET, UnsetType, structs

from ..engine.types import TokenLogprobs
from ..gateway.fleet.resume import ResumedChoice
from .answer import Answer, ChoiceText, shows
from .best_of import best_choices
from .errors import ApiError
from .generation import ChoiceDelta
from .logprobs import TextOffsets, completion_logprobs, prompt_logprobs
from .openai import CompletionRequest
from .text.detokenizer import TextStream
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

Positions = Sequence[TokenLogprobs | None]


class CompletionWriter:
    """Text completion shapes for one answer."""

    done = DONE_EVENT

    def __init__(self, answer: Answer, tokenizer: Tokenizer, body: CompletionRequest) -> None:
        self.answer = answer
        self._tokenizer = tokenizer
        self._body = body
        self._echoes = [
            self._echo(prompt_index) if body.echo else ""
            for prompt_index in range(len(answer.prompts))
        ]
        self._opened: set[int] = set()
        self._offsets: dict[int, TextOffsets] = {}

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Go on with ``answer``: what was sent has its echo, and offsets go on behind it."""
        self.answer = answer
        for choice in sent:
            self._opened.add(choice.index)
            if self._body.logprobs is not None:
                self._answer_offsets(choice.index).take(choice.token_ids)

    def _echo(self, prompt_index: int) -> str:
        prompt = self.answer.prompts[prompt_index]
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids)

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> Completion:
        """The body of an answer that is not streamed."""
        shown: Sequence[int] = range(len(choices))
        if self._body.best_of is not None and self.answer.beams is None:
            shown = best_choices(self.answer, choices, self._body.n or 1)
        scored = {
            self._prompt_index(index): choice.prompt_logprobs
            for index, choice in reversed(list(enumerate(choices)))
            if choice.prompt_logprobs is not None
        }
        own = {
            prompt_index: prompt_logprobs(self._tokenizer, positions, self._body.prompt_logprobs)
            for prompt_index, positions in scored.items()
        }
        shaped = []
        for place, index in enumerate(shown):
            prompt_index = self._prompt_index(index)
            choice = self._choice(place, index, choices[index], scored.get(prompt_index))
            scores = own.get(prompt_index, UNSET)
            shaped.append(structs.replace(choice, prompt_logprobs=scores))
        return self._completion(shaped, usage)

    def _choice(
        self, place: int, index: int, choice: ChoiceText, scored: Positions | None
    ) -> CompletionChoice:
        return CompletionChoice(
            index=place,
            text=self._echoes[self._prompt_index(index)] + "".join(choice.text),
            finish_reason=choice.finish_reason,
            logprobs=self._logprobs(index, choice.token_ids, choice.logprobs, scored),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self.answer.return_token_ids else UNSET,
            prompt_token_ids=self._prompt_token_ids(index),
        )

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """One event; a choice's first one opens with the prompt where that is echoed."""
        index, delta = item.choice.index, item.delta
        opening = index not in self._opened
        echo = self._echoes[item.choice.prompt_index] if opening else ""
        if not (echo or shows(item)):
            return b""
        self._opened.add(index)
        scored = delta.prompt_logprobs if opening else None
        choice = CompletionChoice(
            index=index,
            text=echo + delta.text,
            finish_reason=delta.finish_reason,
            logprobs=self._logprobs(index, delta.token_ids, delta.logprobs, scored),
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
        self,
        index: int,
        token_ids: list[int],
        positions: Positions | None,
        scored: Positions | None,
    ) -> CompletionLogprobs | None:
        """Of new tokens, and before them of the prompt's where that is echoed and ``scored``."""
        num_top = self._body.logprobs
        if num_top is None or (positions is None and scored is None):
            return None
        positions = positions or ()
        offsets = self._answer_offsets(index).take(token_ids)
        if self._body.echo and scored is not None:
            prompt_index = self._prompt_index(index)
            token_ids = [*self.answer.prompts[prompt_index].token_ids, *token_ids]
            positions = [*scored, *positions]
            offsets = [*self._prompt_offsets(prompt_index), *offsets]
        return completion_logprobs(self._tokenizer, token_ids, positions, num_top, offsets)

    def _answer_offsets(self, index: int) -> TextOffsets:
        """Where a choice's next token begins; its text begins with the echo."""
        known = self._offsets.get(index)
        if known is None:
            choice = self.answer.choices[index]
            params = choice.generation.params
            text = TextStream(
                self._tokenizer, choice.generation.prompt_token_ids, params.skip_special_tokens
            )
            known = TextOffsets(text, len(self._echoes[choice.prompt_index]))
            self._offsets[index] = known
        return known

    def _prompt_offsets(self, prompt_index: int) -> list[int]:
        """Where the prompt's tokens begin in its echo; those that are not in it take no room."""
        prompt = self.answer.prompts[prompt_index]
        if prompt.text is not None:
            special = self._body.add_special_tokens is not False
            token_ids, ends = self._tokenizer.character_ends(prompt.text, special)
            if token_ids == prompt.token_ids:
                return [0, *accumulate(ends[:-1], max)]
        text = TextStream(self._tokenizer, [], skip_special_tokens=False)
        return TextOffsets(text, 0).take(prompt.token_ids)
