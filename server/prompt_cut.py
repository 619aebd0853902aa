"""``truncate_prompt_tokens``: only the end of a prompt that is too long; ``echo`` of a chat."""

from __future__ import annotations

from .chat_messages import to_template
from .openai import ChatRequest, SamplingFields
from .prompt import Prompt


def truncated(
    prompt: Prompt, body: SamplingFields, max_tokens: int | None, max_model_len: int
) -> Prompt:
    """The end of ``prompt`` that ``body`` wants; -1: what leaves room for the answer, or a token.

    Of a prompt that was cut there is no text: its tokens stand for it.
    """
    room = max_model_len - (1 if max_tokens is None else max_tokens)
    return last_tokens(prompt, body.truncate_prompt_tokens, max(1, room))


def last_tokens(prompt: Prompt, limit: int | None, most: int) -> Prompt:
    """The last ``limit`` tokens; -1: the last ``most``, None: all."""
    if limit is None:
        return prompt
    kept = most if limit == -1 else limit
    return prompt if len(prompt.token_ids) <= kept else Prompt(prompt.token_ids[-kept:], None)


def echoed(body: ChatRequest) -> str:
    """What stands before each answer: the last message, if that is the one that goes on (vLLM)."""
    last = body.messages[-1]
    opens = body.add_generation_prompt is not False and not body.continue_final_message
    if not body.echo or (opens and last.role != "assistant"):
        return ""
    return str(to_template(last)["content"])
