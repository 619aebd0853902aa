"""A running server with adapters: an admin's calls, clients' requests, what memory is in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
from server_process import ServerProcess, metric_of, serve

ADMIN_KEY = "k-admin"
BASE = "base"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}

# Small pools, so that tests see what comes and goes; room for what they ask at once.
ADAPTER_FLAGS = (
    *("--served-model-name", BASE, "--dtype", "float32", "--device", "cpu"),
    *("--num-threads", "1", "--kv-cache-gb", "0.05", "--max-num-seqs", "64"),
    *("--adapter-memory-gb", "0.05", "--adapter-dense-gb", "0.02", "--adapter-host-gb", "0.1"),
    *("--admin-key", ADMIN_KEY),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy answer: the tokens of prompt and output, and how many were found in the cache."""

    prompt: list[int]
    output: list[int]
    num_cached: int
    model: str


class AdapterServer:
    """What tests ask of one server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.http = httpx.Client(
            base_url=server.base_url,
            headers=ADMIN,
            timeout=60,
            event_hooks={"response": [self._refuse_failure]},
        )
        self.openai = openai.OpenAI(
            base_url=server.api_url, api_key="none", max_retries=0, timeout=60
        )

    def close(self) -> None:
        self.http.close()
        self.openai.close()

    def _refuse_failure(self, response: httpx.Response) -> None:
        """Nothing that an admin sends may be a 500."""
        assert response.status_code != 500, f"{response.request}\n{self.server.output()}"

    def put(self, name: str, source: Path, **fields: Any) -> dict[str, Any]:
        """Put a directory; the whole answer, which has to be a good one."""
        response = self.http.put(f"/admin/adapters/{name}", json={"source": str(source), **fields})
        return parsed(response, 200, 201)

    def get(self, name: str) -> dict[str, Any]:
        return parsed(self.http.get(f"/admin/adapters/{name}"))

    def post(self, name: str, verb: str, **body: Any) -> dict[str, Any]:
        """``pin``, ``unpin``, ``load``, ``evict``, ``rollback``; it has to work."""
        return parsed(self.http.post(f"/admin/adapters/{name}/{verb}", json=body))

    def delete(self, name: str, wait: float = 30) -> dict[str, Any]:
        """Remove a name, and have its memory free."""
        answer = parsed(self.http.delete(f"/admin/adapters/{name}", params={"wait": wait}))
        assert answer["done"], answer
        return answer

    def put_alias(self, alias: str, **body: Any) -> dict[str, Any]:
        return parsed(self.http.put(f"/admin/aliases/{alias}", json=body), 200, 201)

    def names(self) -> list[str]:
        """Names of all adapters."""
        listed = parsed(self.http.get("/admin/adapters"))["adapters"]
        return [entry["name"] for entry in listed]

    def models(self) -> list[str]:
        """What clients are told that they may ask."""
        return [model.id for model in self.openai.models.list()]

    def complete(self, model: str, prompt: str | list[int], **fields: Any) -> Answer:
        """A greedy completion through the SDK, with its token ids."""
        extra = {"return_token_ids": True, "ignore_eos": True, **fields.pop("extra_body", {})}
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 12, **fields}
        answer = self.openai.completions.create(
            model=model, prompt=prompt, extra_body=extra, **options
        )
        choice: Any = answer.choices[0]
        details = answer.usage and answer.usage.prompt_tokens_details
        assert details is not None
        return Answer(
            list(choice.prompt_token_ids),
            list(choice.token_ids),
            details.cached_tokens or 0,
            answer.model,
        )

    def stream(self, model: str, prompt: str, **fields: Any) -> Stream:
        """A greedy stream that nobody reads yet."""
        extra = {"return_token_ids": True, "ignore_eos": True}
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 3000, **fields}
        chunks = self.openai.completions.create(
            model=model, prompt=prompt, stream=True, extra_body=extra, **options
        )
        return Stream(list(prompt.encode()), chunks)

    def used(self) -> dict[str, float]:
        """Bytes of adapters by tier: device, dense, host."""
        text = self.metrics()
        name = "branchline:adapter_memory_bytes"
        return {
            tier: metric_of(text, name, state="used", tier=tier)
            for tier in ("device", "dense", "host")
        }

    def tiers(self) -> dict[str, float]:
        """How many adapters the engine has, by their nearest tier."""
        text = self.metrics()
        return {
            tier: metric_of(text, "branchline:adapters", tier=tier)
            for tier in ("device", "host", "disk")
        }

    def metrics(self) -> str:
        """What ``/metrics`` says."""
        return self.http.get("/metrics").text


@dataclass
class Stream:
    """A stream being read; ``output`` is what has come."""

    prompt: list[int]
    chunks: Any
    output: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def read(self, num_tokens: int) -> None:
        """Read on until so many tokens are here."""
        while len(self.output) < num_tokens:
            assert self._read_one(), f"the stream ended after {len(self.output)} tokens"

    def finish(self) -> None:
        """Read to the end."""
        while self._read_one():
            pass
        assert self.finish_reason == "length", self.finish_reason

    def close(self) -> None:
        """Leave."""
        self.chunks.close()

    def _read_one(self) -> bool:
        chunk = next(self.chunks, None)
        if chunk is None:
            return False
        for choice in chunk.choices:
            self.output += choice.token_ids or []
            self.finish_reason = choice.finish_reason or self.finish_reason
        return True


class Background(threading.Thread):
    """A call in a thread of its own; ``join`` gives what it gave, or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self, seconds: float = 60) -> Any:
        """What the call gave."""
        self.join(seconds)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._result


@contextmanager
def serve_adapters(
    model: Path, *arguments: str, roots: Sequence[Path] = (), **options: Any
) -> Iterator[AdapterServer]:
    """A server of ``model`` whose admin may load adapters from ``roots``."""
    with serve(model, *adapter_flags(roots), *arguments, **options) as process:
        server = AdapterServer(process)
        try:
            yield server
        finally:
            server.close()


def adapter_flags(roots: Sequence[Path]) -> list[str]:
    """Flags of a server whose admin may load adapters from ``roots``."""
    return [*ADAPTER_FLAGS, *(flag for root in roots for flag in ("--adapter-root", str(root)))]


def parsed(response: httpx.Response, *statuses: int) -> dict[str, Any]:
    """A body, if the status is one of ``statuses`` (none: 200)."""
    assert response.status_code in (statuses or (200,)), response.text
    body: dict[str, Any] = response.json()
    return body


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The error of a response that has to be one of OpenAI's shape."""
    assert 400 <= response.status_code < 500, f"{response.status_code}: {response.text}"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
