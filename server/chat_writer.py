"""Chat shapes for an answer, whole and in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, structs

from ..engine.types import TokenLogprobs
from ..gateway.fleet.resume import ResumedChoice
from .answer import Answer, ChoiceText, shows
from .chat_parts import ChoiceReader
from .errors import ApiError
from .generation import ChoiceDelta
from .logprobs import chat_logprobs, prompt_logprobs
from .output_plan import OutputPlan
from .text.detokenizer import TextDelta
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


class ChatWriter:
    """Chat shapes for one answer."""

    done = DONE_EVENT

    def __init__(
        self,
        answer: Answer,
        tokenizer: Tokenizer,
        plan: OutputPlan | None = None,
        echo: str = "",
    ) -> None:
        self.answer = answer
        self._echo = echo
        self._tokenizer = tokenizer
        self._plan = plan or OutputPlan()
        self._opened: set[int] = set()
        self._readers: dict[int, ChoiceReader] = {}

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Go on with ``answer``: what was sent has its role."""
        self.answer = answer
        self._opened.update(choice.index for choice in sent)
        self._readers.clear()
        if not self._plan.is_plain:
            for index, text in texts.items():
                self._reader(index).read(text, is_end=False)

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
            prompt_logprobs=prompt_logprobs(
                self._tokenizer,
                choices[0].prompt_logprobs,
                answer.choices[0].generation.params.prompt_logprobs,
            ),
        )

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """A choice's first event names the role; the rest carry its text."""
        events = b""
        index, delta = item.choice.index, item.delta
        if index not in self._opened:
            self._opened.add(index)
            opening = ChatChunkChoice(
                index=index, delta=ChatDelta(role="assistant", content=self._echo)
            )
            events = self._event([opening], usage, opening=len(self._opened) == 1)
        if shows(item):
            added = self._read(index, delta)
            finish = self._finish(index, delta.finish_reason)
            events += self._event(
                [
                    ChatChunkChoice(
                        index=index,
                        delta=added,
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

    def _reader(self, index: int) -> ChoiceReader:
        reader = self._readers.get(index)
        if reader is None:
            reader = ChoiceReader(self.answer.id, index, self._plan.new_parser())
            self._readers[index] = reader
        return reader

    def _read(self, index: int, delta: TextDelta) -> ChatDelta:
        if self._plan.is_plain:
            return ChatDelta(content=delta.text)
        return self._reader(index).read(delta.text, is_end=delta.finish_reason is not None)

    def _finish(self, index: int, reason: str | None) -> str | None:
        """An answer that stopped by itself behind a call waits for the tools."""
        if reason == "stop" and not self._plan.is_plain and self._reader(index).num_calls:
            return "tool_calls"
        return reason

    def _choice(self, index: int, choice: ChoiceText) -> ChatChoice:
        text = "".join(choice.text)
        if self._plan.is_plain:
            message = AssistantMessage(content=text)
        else:
            message = self._reader(index).message(text)
        if self._echo:
            message = structs.replace(message, content=self._echo + (message.content or ""))
        return ChatChoice(
            index=index,
            message=message,
            finish_reason=self._finish(index, choice.finish_reason) or "stop",
            logprobs=self._logprobs(choice.logprobs),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self.answer.return_token_ids else UNSET,
        )

    def _logprobs(self, positions: Sequence[TokenLogprobs] | None) -> ChatLogprobs | None:
        num_top = self.answer.num_logprobs
        if num_top is None or positions is None:
            return None
        return chat_logprobs(self._tokenizer, positions, num_top)
