"""The server's work on a streamed chat, part by part and in one process: microseconds of each.

Parts of a request are paid once, parts of a token for each token of the answer. What a running
server spends beyond them goes to sockets, the event loop and metrics.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import msgspec
from starlette.types import Message

from branchline.engine.messages import FromEngine, StepDone
from branchline.engine.types import EngineStats, GenerationRequest, SamplingParams, TokenOutput
from branchline.server.answer import Answer
from branchline.server.body import parse_body
from branchline.server.catalog import ServedModel
from branchline.server.chat import ChatAnswer
from branchline.server.chat_writer import ChatWriter
from branchline.server.generation import ChoiceDelta, ChoiceRequest
from branchline.server.openai import ChatRequest
from branchline.server.prompt import Prompt
from branchline.server.stream import EventStream
from branchline.server.text.detokenizer import Detokenizer
from branchline.server.text.tokenizer import Tokenizer

BATCH = 32
"""Requests of one engine step."""


@dataclass(frozen=True, slots=True)
class Part:
    """Microseconds that one unit of this work takes."""

    name: str
    unit: str
    microseconds: float


def measure_parts(
    tokenizer: Tokenizer, content: str, num_tokens: int, num_repeats: int
) -> list[Part]:
    """Each part over ``content`` as the question and an answer of ``num_tokens``."""
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": num_tokens,
        "stream": True,
    }
    raw = json.dumps(body).encode()
    messages = [{"role": "user", "content": content}]
    text = tokenizer.render_chat(messages, add_generation_prompt=True)
    prompt = Prompt(tokenizer.encode(text, False), text)
    outputs = _outputs(prompt.token_ids, num_tokens)
    answer = _answer(ChatRequest.model_validate(body), prompt, num_tokens)
    deltas = _deltas(tokenizer, answer.choices[0], outputs)
    step = msgspec.msgpack.encode(StepDone(outputs[:BATCH], EngineStats()))
    decoder = msgspec.msgpack.Decoder(FromEngine)
    events = _events(tokenizer, answer, deltas)

    once: list[tuple[str, Callable[[], object]]] = [
        ("parse the body", lambda: parse_body(ChatRequest, raw)),
        ("chat template", lambda: tokenizer.render_chat(messages, add_generation_prompt=True)),
        ("tokenize", lambda: tokenizer.encode(text, False)),
    ]
    each: list[tuple[str, Callable[[], object], int]] = [
        ("take in from the engine", lambda: decoder.decode(step), min(BATCH, num_tokens)),
        ("detokenize", lambda: _deltas(tokenizer, answer.choices[0], outputs), num_tokens),
        ("shape and encode", lambda: _events(tokenizer, answer, deltas), num_tokens),
        ("hand to HTTP", lambda: asyncio.run(_send(events)), num_tokens),
    ]
    parts = [Part(name, "request", timed(work, num_repeats)) for name, work in once]
    return parts + [
        Part(name, "token", timed(work, num_repeats) / number) for name, work, number in each
    ]


def timed(work: Callable[[], object], num_repeats: int) -> float:
    """The median of ``num_repeats`` runs, in microseconds; one run more goes before them."""
    work()
    seconds = []
    for _ in range(num_repeats):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return median(seconds) * 1e6


def _outputs(token_ids: Sequence[int], num_tokens: int) -> list[TokenOutput]:
    """An answer that says the prompt again and again."""
    return [
        TokenOutput(
            request_id="0" * 32,
            token_ids=[token_ids[index % len(token_ids)]],
            finish_reason="length" if index + 1 == num_tokens else None,
        )
        for index in range(num_tokens)
    ]


def _answer(body: ChatRequest, prompt: Prompt, num_tokens: int) -> Answer:
    params = SamplingParams(max_tokens=num_tokens, seed=0)
    generation = GenerationRequest(
        request_id="0" * 32, prompt_token_ids=prompt.token_ids, params=params
    )
    model = ServedModel("base", "base", None)
    return Answer.open("chatcmpl-", body, model, [prompt], [ChoiceRequest(0, 0, generation)])


def _deltas(
    tokenizer: Tokenizer, choice: ChoiceRequest, outputs: Sequence[TokenOutput]
) -> list[ChoiceDelta]:
    generation = choice.generation
    detokenizer = Detokenizer(tokenizer, generation.prompt_token_ids, generation.params)
    return [ChoiceDelta(choice, detokenizer.push(output)) for output in outputs]


def _events(tokenizer: Tokenizer, answer: Answer, deltas: Sequence[ChoiceDelta]) -> list[bytes]:
    opened = ChatAnswer(answer, tokenizer)
    writer = ChatWriter(opened.answer, opened.tokenizer)
    return [writer.chunk(delta, None) for delta in deltas]


class _Framing:
    done = b""

    def failure(self, error: Exception) -> bytes:
        return b""


async def _send(events: Sequence[bytes]) -> None:
    """Through the response to a socket that takes everything."""

    async def rest() -> AsyncGenerator[bytes]:
        for event in events[1:]:
            yield event

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        return

    await EventStream(events[0], rest(), _Framing())({"type": "http"}, receive, send)
