"""A server of a fleet over an engine in memory, asked for streams that can be resumed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import httpx
from cut_streams import SECRET, STATE_HEADERS, Group, record_of, resume_request, split_groups
from fake_engine import FakeEngine

from branchline.engine.types import GenerationRequest, TokenOutput
from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, access, make_client, make_services

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
END = 258
FINGERPRINT = "f" * 32


def body_of(path: str, **fields: Any) -> bytes:
    what: dict[str, Any] = {"prompt": "hello"}
    if path == CHAT:
        what = {"messages": [{"role": "user", "content": "hello"}]}
    fixed = {"model": BASE, "stream": True, "max_tokens": 100}
    return json.dumps({**fixed, **what, **fields}).encode()


class ReplicaEngine(FakeEngine):
    """Says a text of its own for each prompt and choice, ``num_joined`` tokens an output."""

    def __init__(self, num_joined: int = 1, num_cached: int = 3) -> None:
        super().__init__(self._say)
        self.num_cached = lambda request: num_cached + request.choice_index
        self._num_joined = num_joined

    def _say(self, request: GenerationRequest) -> list[int]:
        words = bytes(token for token in request.prompt_token_ids if token < 256).decode()
        text = f"{request.choice_index} naïve 😀 {words[-8:]} to the end. Tea"
        return [*text.encode(), END]

    async def _outputs(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        held: list[TokenOutput] = []
        async for output in super()._outputs(request):
            held.append(output)
            if len(held) == self._num_joined or output.finish_reason is not None:
                yield _join(held)
                held = []


def _join(outputs: Sequence[TokenOutput]) -> TokenOutput:
    first, last = outputs[0], outputs[-1]
    if last.finish_reason == "error":
        return last
    return replace(
        last,
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        logprobs=None if last.logprobs is None else [o.logprobs[0] for o in outputs],
        num_cached_tokens=first.num_cached_tokens,
        queue_seconds=first.queue_seconds,
    )


class Replica:
    """One server of the fleet."""

    def __init__(self, tokenizer: Tokenizer, engine: FakeEngine | None = None, **limits: Any):
        self.engine = engine or ReplicaEngine()
        secret = access(fleet_secret=SECRET)
        services = make_services(tokenizer, self.engine, secret, **limits)
        self.services = replace(services, fingerprint=FINGERPRINT)
        self.client = make_client(create_app(self.services))

    async def post(
        self, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        return await self.client.post(path, content=body, headers=headers)

    async def stream(self, path: str, body: bytes) -> list[Group]:
        """An undisturbed stream with its state."""
        response = await self.post(path, body, STATE_HEADERS)
        assert response.status_code == 200, response.text
        return split_groups(response.content)

    async def resume(self, path: str, body: bytes, groups: Sequence[Group]) -> list[Group]:
        """What follows ``groups``."""
        response = await self.post(path, *resume_request(record_of(groups), body))
        assert response.status_code == 200, response.text
        return split_groups(response.content)
