"""transformers + peft behind the completions API, as fairly as ``generate`` allows.

Requests that wait together are one static batch, base and adapters mixed by ``adapter_names``.
``generate`` streams single requests only, so an answer comes in one chunk at its batch's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_BATCH = 64
GATHER_SECONDS = 0.02
"""After the first request of a batch: time for those sent at the same moment to arrive."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue; the worker sets ``answer`` to its output ids."""

    model: str
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool
    answer: asyncio.Future[list[int]]


class StaticBatcher:
    """Turns what is in the queue into batches, one after the other."""

    def __init__(self, model: Any, names: list[str], pad_id: int) -> None:
        self.names = names
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._model = model
        self._pad_id = pad_id

    async def run(self) -> None:
        """Answer batch after batch; one that fails fails its own requests."""
        while True:
            batch = [await self.queue.get()]
            await asyncio.sleep(GATHER_SECONDS)
            while len(batch) < MAX_BATCH and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            try:
                answers = await asyncio.to_thread(self.generate, batch)
            except Exception as error:
                for waiting in batch:
                    waiting.answer.set_exception(RuntimeError(str(error)))
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.cancelled():
                    waiting.answer.set_result(answer)

    @torch.inference_mode()
    def generate(self, batch: list[Waiting]) -> list[list[int]]:
        """Greedy output ids of each request, padded left to the longest prompt."""
        longest = max(len(waiting.prompt) for waiting in batch)
        padding = [longest - len(waiting.prompt) for waiting in batch]
        ids = [[self._pad_id] * pad + w.prompt for pad, w in zip(padding, batch, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        max_tokens = max(waiting.max_tokens for waiting in batch)
        arguments = {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "max_new_tokens": max_tokens,
            "min_new_tokens": max_tokens if all(w.ignore_eos for w in batch) else None,
            "do_sample": False,
            "pad_token_id": self._pad_id,
        }
        if all(waiting.model == "base" for waiting in batch):
            with self._model.disable_adapter():
                out = self._model.generate(**arguments)
        else:
            names = ["__base__" if w.model == "base" else w.model for w in batch]
            out = self._model.generate(**arguments, adapter_names=names)
        rows = out[:, longest:].tolist()
        return [row[: waiting.max_tokens] for row, waiting in zip(rows, batch, strict=True)]


def build_app(batcher: StaticBatcher, tokenizer: Any) -> Starlette:
    """The three routes that a load client needs."""

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": name} for name in batcher.names]})

    async def ready(request: Request) -> Response:
        return Response()

    async def completions(request: Request) -> Response:
        body = await request.json()
        if body["model"] not in batcher.names:
            return JSONResponse({"error": {"message": "unknown model"}}, status_code=404)
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        ignore_eos = bool(body.get("ignore_eos"))
        waiting = Waiting(body["model"], body["prompt"], body["max_tokens"], ignore_eos, answer)
        await batcher.queue.put(waiting)
        return StreamingResponse(events(waiting, tokenizer), media_type="text/event-stream")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    routes = [
        Route("/ready", ready),
        Route("/v1/models", models),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def events(waiting: Waiting, tokenizer: Any) -> AsyncIterator[bytes]:
    """The whole answer as one chunk, then its usage."""
    ids = await waiting.answer
    usage = {"prompt_tokens": len(waiting.prompt), "completion_tokens": len(ids)}
    choice = {"index": 0, "text": tokenizer.decode(ids), "finish_reason": "length"}
    for chunk in ({"choices": [choice]}, {"choices": [], "usage": usage}):
        yield b"data: " + msgspec.json.encode(chunk) + b"\n\n"
    yield b"data: [DONE]\n\n"


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.option("--lora", "loras", multiple=True, metavar="NAME=PATH")
@click.option("--port", type=int, required=True)
def main(base: Path, loras: tuple[str, ...], port: int) -> None:
    """Serve BASE and its adapters on 127.0.0.1."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names: list[str] = []
    for pair in loras:
        name, _, path = pair.partition("=")
        if not names:
            model = PeftModel.from_pretrained(model, path, adapter_name=name)
        else:
            model.load_adapter(path, adapter_name=name)
        names.append(name)
    batcher = StaticBatcher(model.eval(), ["base", *names], tokenizer.eos_token_id)
    uvicorn.run(build_app(batcher, tokenizer), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
