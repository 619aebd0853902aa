"""One seat and a short queue: who goes first, and who is turned away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server_process import ServerProcess, serve, wait_for

from .conftest import SERVE_FLAGS, Models
from .test_prefix_and_tenants import FLAGS, PROMPT, cached, complete, connect, whole_blocks

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def narrow(models: Models) -> Iterator[ServerProcess]:
    """One seat and a queue of four, and tenants that share prefixes."""
    flags = ("--max-num-seqs", "1", "--max-queued-requests", "4", "--share-prefixes")
    with serve(models.model, *SERVE_FLAGS, *FLAGS, *flags) as running:
        yield running


class Background:
    """A streamed completion in a thread of its own; ``left`` ends it early."""

    def __init__(self, server: ServerProcess, key: str, **fields: Any) -> None:
        self.error: openai.APIStatusError | None = None
        self.num_chunks = 0
        self.ended_at: float | None = None
        self.left = False
        self._server, self._key, self._fields = server, key, fields
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        extra = {"ignore_eos": True, **self._fields.pop("extra_body", {})}
        try:
            with connect(self._server, self._key) as client:
                for _ in client.completions.create(
                    model="base", prompt="x", stream=True, extra_body=extra, **self._fields
                ):
                    self.num_chunks += 1
                    if self.left:
                        break
        except openai.APIStatusError as error:
            self.error = error
        self.ended_at = time.monotonic()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the request hangs"


def waiting(server: ServerProcess) -> float:
    return server.metric("vllm:num_requests_waiting")


def occupy(server: ServerProcess, key: str) -> Background:
    """Have the one seat taken."""
    holder = Background(server, key, max_tokens=4000)
    wait_for(lambda: holder.num_chunks > 2, 30)
    return holder


def test_tenants_that_share_find_each_others_prefixes(narrow: ServerProcess) -> None:
    complete(narrow, PROMPT)
    assert cached(complete(narrow, PROMPT, key="k-beta")) == whole_blocks(len(PROMPT))


def test_priority_goes_first(narrow: ServerProcess) -> None:
    holder = occupy(narrow, "k-acme")
    asked = []
    for number, priority in enumerate((5, 0, -3), start=1):
        extra = {"priority": priority}
        asked.append(Background(narrow, "k-acme", max_tokens=200, extra_body=extra))
        wait_for(lambda number=number: waiting(narrow) == number, 30)
    holder.left = True
    for request in (holder, *asked):
        request.join()
        assert request.error is None
    ends = [request.ended_at for request in asked]
    assert ends == sorted(ends, reverse=True), "the last one to come was the first to go"


def test_who_floods_is_turned_away_and_who_behaves_gets_in(narrow: ServerProcess) -> None:
    holder = occupy(narrow, "k-acme")
    flood = []
    for number in range(1, 5):
        flood.append(Background(narrow, "k-acme", max_tokens=2))
        wait_for(lambda number=number: waiting(narrow) == number, 30)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(narrow, "x")
    assert caught.value.code == "queue_full"
    assert caught.value.type == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1

    behaving = Background(narrow, "k-beta", max_tokens=2)
    flood[-1].join()
    error = flood[-1].error
    assert isinstance(error, openai.RateLimitError), "the newest of the flood made room"
    assert int(error.response.headers["retry-after"]) >= 1
    holder.left = True
    for request in (holder, behaving, *flood[:-1]):
        request.join()
        assert request.error is None
    assert narrow.metric("branchline:overloaded_requests_total") == 2
    assert narrow.metric("branchline:tenant_requests_total", tenant="acme", status="429") == 2
    assert narrow.metric("branchline:tenant_requests_total", tenant="beta", status="429") == 0
