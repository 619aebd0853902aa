"""The bodies that go out, as msgspec structs: responses, stream chunks, usage, models."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, structs

from .errors import ApiError


class PromptTokensDetails(Struct, frozen=True):
    """How many of the prompt's tokens came out of the KV cache."""

    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    """How many of the answer's tokens are reasoning."""

    reasoning_tokens: int


class Usage(Struct, frozen=True):
    """Token counts of a whole request, over its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class TopLogprob(Struct, frozen=True):
    """One likely token at a position of a chat."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct, frozen=True):
    """The chosen token at a position of a chat."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities in the shape of chats."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class PromptLogprob(Struct, frozen=True):
    """One token at a position of a prompt, as vLLM says it."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry a token of a prompt, by token id; null for the first."""


class CompletionLogprobs(Struct, frozen=True):
    """Log-probabilities in the shape of text completions; lists of equal length.

    The first token of an echoed prompt has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CalledFunction(Struct, frozen=True):
    """What is to be called, or in a stream a part of it."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallOut(Struct, frozen=True, kw_only=True):
    """A tool call, or in a stream a part of it, which ``index`` puts in its place."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CalledFunction


class AssistantMessage(Struct, frozen=True, kw_only=True):
    """The answer of a chat; without text ``content`` is null where there is something else."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallOut] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One finished choice of a chat."""

    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The whole answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    """What a chunk adds to a chat's choice."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallOut] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """One choice in one chunk of a chat."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One chunk of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Struct, frozen=True):
    """One choice of a text completion, finished or a part of it in a stream."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, frozen=True, kw_only=True):
    """A text completion, whole or one chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Embedding(Struct, frozen=True, kw_only=True):
    """One input's vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct, frozen=True):
    """Token counts of all inputs."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EmbeddingList(Struct, frozen=True, kw_only=True):
    """The body of ``/v1/embeddings``, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(Struct, frozen=True, kw_only=True):
    """One name in ``/v1/models``.

    ``parent`` is the base model of an adapter, ``root`` the directory, address or archive behind
    a name.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(Struct, frozen=True):
    """The body of ``/v1/models``; the last three only in a page that was asked for."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
    first_id: str | UnsetType | None = UNSET
    last_id: str | UnsetType | None = UNSET
    has_more: bool | UnsetType = UNSET


def make_usage(
    num_prompt: int, num_completion: int, num_cached: int, num_reasoning: int | None = None
) -> Usage:
    """Usage from its counts; ``num_reasoning`` None: the model marks no reasoning."""
    return Usage(
        num_prompt,
        num_completion,
        num_prompt + num_completion,
        PromptTokensDetails(num_cached),
        UNSET if num_reasoning is None else CompletionTokensDetails(num_reasoning),
    )


# A data race is impossible here: an encoder keeps no state between calls.
_ENCODER = msgspec.json.Encoder()


def encode(body: object) -> bytes:
    """A body as JSON."""
    return _ENCODER.encode(body)


def encode_in_parts(body: Struct) -> bytes:
    """The same, choice by choice: other threads wait while the encoder is at work."""
    choices = getattr(body, "choices", None)
    if choices is None:
        return encode(body)
    return encode(structs.replace(body, choices=[Raw(encode(choice)) for choice in choices]))


def encode_event(body: object) -> bytes:
    """A body as one server-sent event."""
    return b"data: " + _ENCODER.encode(body) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """An error in the middle of a stream."""
    return encode_event({"error": error.detail})


DONE_EVENT = b"data: [DONE]\n\n"
