"""Stands in for a server in the benchmarks' tests: it finds full blocks of what it has seen."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence

import httpx

from branchline.benchmarks.cases.client import Client
from branchline.lora.activation import find_activation

BLOCK_SIZE = 4
GENERATION_PROMPT = [301, 302, 303]
ALORA = "alora"


class CachingServer(httpx.AsyncBaseTransport):
    """Answers streamed requests with tokens that never repeat, and remembers full blocks.

    It works as an endless cache of full blocks does: all computed KV is kept, an activated LoRA's
    before its invocation as the base's, from there on as nobody else's. ``forgets`` blocks at the
    end of what it knew are lost each time. Chats are tokenized by word. Each answer takes
    ``seconds``.
    """

    def __init__(self, forgets: int = 0, seconds: float = 0.0) -> None:
        self.bodies: list[dict[str, object]] = []
        self._forgets = forgets
        self._seconds = seconds
        self._held: set[tuple[object, ...]] = set()
        self._fresh = itertools.count(10_000)

    def client(self) -> Client:
        return Client("http://server/v1", "secret", transport=self)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        await asyncio.sleep(self._seconds)
        self.bodies.append(body | {"path": request.url.path, **request.headers})
        is_chat = request.url.path.endswith("/chat/completions")
        prompt = chat_ids(body["messages"]) if is_chat else body["prompt"]
        answer = [next(self._fresh) for _ in range(body["max_tokens"])]
        salted = (body.get("cache_salt"), body["model"])
        num_cached = self._compute(salted, prompt, answer)
        events = _chat(prompt, answer) if is_chat else _completion(prompt, answer)
        details = {"prompt_tokens_details": {"cached_tokens": num_cached}}
        usage = {"choices": [], "usage": {"prompt_tokens": len(prompt), **details}}
        lines = [f"data: {json.dumps(event)}\n\n" for event in [*events, usage]]
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))

    def _compute(self, salted: tuple[str | None, str], prompt: list[int], answer: list[int]) -> int:
        tokens = prompt + answer[:-1]
        names = list(self._names(salted, prompt, tokens))
        usable = names[: (len(prompt) - 1) // BLOCK_SIZE]
        found = len(list(itertools.takewhile(lambda name: name in self._held, usable)))
        self._held.update(names)
        return max(0, found - self._forgets) * BLOCK_SIZE

    def _names(
        self, salted: tuple[str | None, str], prompt: list[int], tokens: list[int]
    ) -> Iterator[tuple[object, ...]]:
        salt, model = salted
        activation = find_activation(prompt, GENERATION_PROMPT) if model == ALORA else 0
        for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE):
            is_base = model == "base" or (activation is not None and end <= activation)
            namespace = "base" if is_base else (model, activation)
            yield (salt, namespace, *tokens[:end])


def chat_ids(messages: Sequence[dict[str, str]]) -> list[int]:
    """A word is a token, but for what an answer says: there each two words become one."""
    ids: list[int] = []
    for message in messages:
        words = message["content"].split()
        joined = message["role"] == "assistant"
        ids += [sum(map(ord, word)) for word in (words[::2] if joined else words)]
    return ids + GENERATION_PROMPT


def _chat(prompt: list[int], answer: list[int]) -> list[dict[str, object]]:
    opening = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    deltas = [{"delta": {"content": f"{token} "}, "token_ids": [token]} for token in answer]
    return [opening | {"prompt_token_ids": prompt}, *({"choices": [delta]} for delta in deltas)]


def _completion(prompt: list[int], answer: list[int]) -> list[dict[str, object]]:
    choices: list[dict[str, object]] = [{"text": "x", "token_ids": [token]} for token in answer]
    choices[0]["prompt_token_ids"] = prompt
    return [{"choices": [choice]} for choice in choices]
