"""``POST /v1/messages``: from body to choices, from choices to Anthropic's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ...gateway.fleet.messages_errors import messages_error
from ...gateway.fleet.resume import ResumedChoice
from ..access import Tenant
from ..answer import Answer, ChoiceText
from ..catalog import ServedModel
from ..chat import ChatAnswer, open_chat_answer
from ..errors import ApiError
from ..generation import ChoiceDelta
from ..services import Services
from ..wire import Usage
from .blocks import BlockChange, Blocks, Closed, Grown, Opened
from .body import MessagesRequest
from .read import chats_faults, read_chat
from .wire import AnswerThinking, MessagesAnswer, MessagesUsage, StopReason, event

_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


async def open_messages(
    services: Services, body: MessagesRequest, model: ServedModel, tenant: Tenant
) -> MessagesWriter:
    """Check a conversation and lay out its answer; raises ApiError for what is refused."""
    chat = read_chat(body)
    with chats_faults():
        opened = await open_chat_answer(
            services, chat, model, tenant, kind="msg_", clips_max_tokens=True
        )
    if body.max_tokens == 0:
        opened = replace(opened, answer=_of_the_prompt(opened.answer))
    omits = body.thinking is not None and body.thinking.display == "omitted"
    return MessagesWriter(opened, body.max_tokens, shows_thinking=not omits)


class MessagesWriter:
    """Anthropic's shapes for one answer, which has one choice.

    ``max_tokens`` are those that were asked for; the context may have room for fewer.
    """

    done = b""

    def __init__(self, opened: ChatAnswer, max_tokens: int, *, shows_thinking: bool = True) -> None:
        self.answer = opened.answer
        self._opened, self._shows_thinking = opened, shows_thinking
        self._max_tokens = max_tokens
        self._is_begun = False
        self._stop: tuple[StopReason, str | None] = ("end_turn", None)
        self._restart()

    def resume(
        self, answer: Answer, sent: Sequence[ResumedChoice], texts: Mapping[int, str]
    ) -> None:
        """Go on with ``answer``: its blocks are as open as ``sent`` left them."""
        self.answer = answer
        self._restart()
        for choice in sent:
            self._is_begun = True
            self._take(texts[choice.index], choice.finish_reason, choice.stop_reason)

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> MessagesAnswer:
        """The body of an answer that is not streamed."""
        [choice] = choices
        changes = self._take("".join(choice.text), choice.finish_reason, choice.stop_reason)
        stop_reason, stop_sequence = self._stop
        return MessagesAnswer(
            id=self.answer.id,
            model=self.answer.model_name,
            content=[change.block for change in changes if isinstance(change, Closed)],
            stop_reason=stop_reason,
            stop_sequence=stop_sequence,
            usage=_usage(usage),
        )

    def chunk(self, item: ChoiceDelta, usage: Usage | None) -> bytes:
        """The events of one delta; a ``ping`` for tokens that are held back still."""
        delta = item.delta
        events = b"" if self._is_begun else self._opening(delta.num_cached_tokens)
        changes = self._take(delta.text, delta.finish_reason, delta.stop_reason)
        events += b"".join(_events(changes))
        return events or (event("ping") if delta.token_ids else b"")

    def closing(self, usage: Usage) -> bytes:
        """Why the answer ended, what it took, and that it is over."""
        stop_reason, stop_sequence = self._stop
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        ended = event("message_delta", delta=delta, usage=_usage(usage))
        return ended + event("message_stop")

    def failure(self, error: ApiError) -> bytes:
        """See ``Writer``."""
        return error_event(error)

    def _restart(self) -> None:
        self._parser = self._opened.parser(0)
        self._blocks = Blocks(self.answer.id, shows_thinking=self._shows_thinking)

    def _opening(self, num_cached: int) -> bytes:
        self._is_begun = True
        answer = self.answer
        num_prompt = sum(len(prompt.token_ids) for prompt in answer.prompts)
        message = MessagesAnswer(
            id=answer.id,
            model=answer.model_name,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessagesUsage.of(num_prompt, num_cached, 0),
        )
        return event("message_start", message=message) + event("ping")

    def _take(
        self, text: str, finish_reason: str | None, stop_reason: str | int | None
    ) -> list[BlockChange]:
        changes = self._blocks.take(self._parser.push(text))
        if finish_reason is not None:
            changes += self._blocks.take(self._parser.finish())
            changes += self._blocks.close()
            self._stop = self._stop_of(finish_reason, stop_reason)
        return changes

    def _stop_of(
        self, finish_reason: str, stop_reason: str | int | None
    ) -> tuple[StopReason, str | None]:
        if finish_reason == "length":
            generated = self.answer.choices[0].generation.params.max_tokens or 0
            is_full = generated < self._max_tokens
            return ("model_context_window_exceeded" if is_full else "max_tokens"), None
        if isinstance(stop_reason, str):
            return "stop_sequence", stop_reason
        return ("tool_use" if self._blocks.num_calls else "end_turn"), None


def _of_the_prompt(answer: Answer) -> Answer:
    """The same answer without a token: the prompt is computed, which is then cached."""
    [choice] = answer.choices
    params = replace(choice.generation.params, max_tokens=0)
    generation = replace(choice.generation, params=params)
    return replace(answer, choices=[replace(choice, generation=generation)])


def error_event(error: ApiError) -> bytes:
    """An error in the middle of a stream."""
    body = messages_error(error.status, error.message)
    return event("error", error=body["error"])


def _usage(usage: Usage) -> MessagesUsage:
    num_cached = usage.prompt_tokens_details.cached_tokens
    return MessagesUsage.of(usage.prompt_tokens, num_cached, usage.completion_tokens)


def _events(changes: Iterable[BlockChange]) -> Iterable[bytes]:
    for change in changes:
        match change:
            case Opened(index, block):
                if isinstance(block, AnswerThinking):
                    block = AnswerThinking("", "")  # the signature comes at its end
                yield event("content_block_start", index=index, content_block=block)
            case Grown(index, kind, text):
                name, field = _DELTAS[kind]
                delta = {"type": name, field: text}
                yield event("content_block_delta", index=index, delta=delta)
            case Closed(index, block):
                if isinstance(block, AnswerThinking):
                    signed = {"type": "signature_delta", "signature": block.signature}
                    yield event("content_block_delta", index=index, delta=signed)
                yield event("content_block_stop", index=index)
