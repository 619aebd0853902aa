"""``POST /v1/chat/completions``: from body to choices, from choices to chat shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET

from ..engine.types import TokenLogprobs
from ..gateway.fleet.resume import ResumedChoice
from .access import Tenant
from .answer import Answer, ChoiceText, shows
from .catalog import ServedModel
from .errors import ApiError
from .fleet.keys_choices import key_chat
from .generation import ChoiceDelta, Terms, expand_choices
from .logprobs import chat_logprobs
from .openai import ChatRequest
from .sampling import fit_max_tokens, sampling_params, with_seed
from .services import Services
from .text.tokenizer import Tokenizer
from .wire import (
    DONE_EVENT,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Usage,
    encode_event,
    error_event,
)


async def open_chat(
    services: Services, body: ChatRequest, model: ServedModel, tenant: Tenant
) -> ChatWriter:
    """Check a chat and lay out its choices; raises ApiError for what is refused."""
    params = with_seed(sampling_params(body, services.sampling.of(model)))
    prompt = await services.prompts.chat(body, model)
    params = fit_max_tokens(
        params,
        len(prompt.token_ids),
        services.sampling.max_model_len,
        default=services.sampling.defaults.max_tokens,
        prompt_field="messages",
    )
    choices = expand_choices([(prompt.token_ids, params)], model.digest, Terms.of(body, tenant))
    choices = key_chat(services.prefix_keys, body, model, prompt, choices, services.tokenizer)
    answer = Answer.open("chatcmpl", body, model, [prompt], choices)
    return ChatWriter(answer, model.tokenizer or services.tokenizer)


class ChatWriter:
    """Chat shapes for one answer."""

    done = DONE_EVENT

    def __init__(self, answer: Answer, tokenizer: Tokenizer) -> None:
        self.answer = answer
        self._tokenizer = tokenizer
        self._opened: set[int] = set()

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Go on with ``answer``: what was sent has its role."""
        self.answer = answer
        self._opened.update(choice.index for choice in sent)

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> ChatCompletion:
        """The body of an answer that is not streamed."""
        answer = self.answer
        return ChatCompletion(
            id=answer.id,
            created=answer.created,
            model=answer.model_name,
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=usage,
            prompt_token_ids=(answer.prompts[0].token_ids if answer.return_token_ids else UNSET),
        )

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """A choice's first event names the role; the rest carry its text."""
        events = b""
        index, delta = item.choice.index, item.delta
        if index not in self._opened:
            self._opened.add(index)
            opening = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
            events = self._event([opening], usage, opening=len(self._opened) == 1)
        if shows(item):
            finish = delta.finish_reason
            events += self._event(
                [
                    ChatChunkChoice(
                        index=index,
                        delta=ChatDelta(content=delta.text),
                        logprobs=self._logprobs(delta.logprobs),
                        finish_reason=finish,
                        stop_reason=delta.stop_reason if finish else UNSET,
                        token_ids=delta.token_ids if self.answer.return_token_ids else UNSET,
                    )
                ],
                usage,
            )
        return events

    def failure(self, error: ApiError) -> bytes:
        """See ``Writer``."""
        return error_event(error)

    def closing(self, usage: Usage) -> bytes:
        """The event after the last choice, where the usage is asked for."""
        if not self.answer.include_usage:
            return b""
        return self._event([], usage)

    def _event(
        self, choices: list[ChatChunkChoice], usage: Usage | None, opening: bool = False
    ) -> bytes:
        answer = self.answer
        with_ids = opening and answer.return_token_ids
        return encode_event(
            ChatChunk(
                id=answer.id,
                created=answer.created,
                model=answer.model_name,
                choices=choices,
                usage=usage if answer.include_usage else UNSET,
                prompt_token_ids=answer.prompts[0].token_ids if with_ids else UNSET,
            )
        )

    def _choice(self, index: int, choice: ChoiceText) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(content="".join(choice.text)),
            finish_reason=choice.finish_reason,
            logprobs=self._logprobs(choice.logprobs),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self.answer.return_token_ids else UNSET,
        )

    def _logprobs(self, positions: Sequence[TokenLogprobs] | None) -> ChatLogprobs | None:
        num_top = self.answer.num_logprobs
        if num_top is None or positions is None:
            return None
        return chat_logprobs(self._tokenizer, positions, num_top)
