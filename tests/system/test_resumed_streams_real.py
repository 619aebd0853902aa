"""Real streams of one server, cut anywhere, that another server goes on with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cut_streams import (
    SECRET,
    STATE_HEADERS,
    Group,
    check_close,
    content_of,
    read_groups,
    record_of,
    resume_request,
    split_groups,
)
from server_process import ServerProcess, serve, start
from tiny_adapters import make_adapter
from tiny_models import EOS_TOKEN_ID, make_tiny_model

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
BASE, PLAIN, ACTIVATED = "base", "plain", "activated"
FLAGS = (
    *("--served-model-name", BASE, "--dtype", "float32", "--device", "cpu", "--num-threads", "1"),
    *("--kv-cache-gb", "0.02", "--max-num-seqs", "16", "--max-model-len", "512"),
    *("--fleet-secret", SECRET, "--adapter-memory-gb", "0.05"),
)
INVOCATION = [201, 202, 203]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class House:
    """A model and its adapters on disk, and two servers of them."""

    model: Path
    lora: dict[str, Path]
    here: ServerProcess
    there: ServerProcess


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("resumed")
    model = make_tiny_model(root / "model", "llama")
    lora = {
        PLAIN: make_adapter(model, root / PLAIN, 8, seed=1),
        ACTIVATED: make_adapter(
            model, root / ACTIVATED, 8, seed=2, alora_invocation_tokens=INVOCATION
        ),
    }
    with start(model, *FLAGS, *_flags(lora)) as here, start(model, *FLAGS, *_flags(lora)) as there:
        for server in (here, there):
            server.wait_until_ready(120)
        yield House(model, lora, here, there)


def _flags(lora: dict[str, Path]) -> list[str]:
    return [flag for name, path in lora.items() for flag in ("--lora", f"{name}={path}")]


def body_of(path: str, **fields: Any) -> bytes:
    what: dict[str, Any] = {"prompt": "Once upon a time"}
    if path == CHAT:
        what = {"messages": [{"role": "user", "content": "Once upon a time"}]}
    fixed = {"model": BASE, "stream": True, "max_tokens": 24, "seed": 7, "temperature": 0.8}
    return json.dumps({**fixed, **what, **fields}).encode()


def post(
    server: ServerProcess, path: str, body: bytes, headers: dict[str, str] | None = None
) -> list[Group]:
    response = httpx.post(
        f"{server.base_url}{path}", content=body, headers=headers or STATE_HEADERS, timeout=60
    )
    assert response.status_code == 200, response.text
    return split_groups(response.content)


def go_on(server: ServerProcess, path: str, body: bytes, groups: Sequence[Group]) -> list[Group]:
    return post(server, path, *resume_request(record_of(groups), body))


def cut(server: ServerProcess, path: str, body: bytes, num_groups: int) -> list[Group]:
    """The first groups of a stream whose connection is then closed."""
    url = f"{server.base_url}{path}"
    with httpx.stream("POST", url, content=body, headers=STATE_HEADERS, timeout=60) as response:
        assert response.status_code == 200
        groups = read_groups(response.iter_raw())
        return [next(groups) for _ in range(num_groups)]


def check_whole(pieces: Sequence[Group], whole: Sequence[Group], same_id: bool = True) -> None:
    given, expected = asdict(content_of(pieces)), asdict(content_of(whole))
    assert len(given["head"]) == 1
    if not same_id:
        del given["head"], expected["head"]
    for content in (given, expected):  # what is cached is a server's own
        for usage in (*content["last_usages"], content["running_usage"]):
            if isinstance(usage, dict):
                del usage["prompt_tokens_details"]
    check_close(given, expected)


USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.7}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy chat": (CHAT, {"temperature": 0, "logprobs": True, "top_logprobs": 3, **USAGE}),
    "choices": (CHAT, {"n": 3, "return_token_ids": True, **PENALTIES, **USAGE}),
    "text": (COMPLETE, {"logprobs": 2, "top_p": 0.9, "top_k": 50, **PENALTIES}),
    "prompts": (COMPLETE, {"prompt": ["one", "two 😀"], "n": 2, "echo": True, **USAGE}),
    "min_tokens": (
        COMPLETE,
        {"min_tokens": 13, "logit_bias": {str(EOS_TOKEN_ID): 100}, "logprobs": 0},
    ),
    "adapter": (COMPLETE, {"model": PLAIN, "logprobs": 1, **USAGE}),
    "activated": (COMPLETE, {"model": ACTIVATED, "prompt": [1, 2, 3, *INVOCATION, 9, 8]}),
}


@pytest.mark.parametrize("case", CASES)
def test_another_server_goes_on_behind_any_event(house: House, case: str) -> None:
    path, fields = CASES[case]
    body = body_of(path, **fields)
    whole = post(house.here, path, body)
    for num_groups in range(1, len(whole) + 1, 3):
        pieces = whole[:num_groups]
        check_whole([*pieces, *go_on(house.there, path, body, pieces)], whole)


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_a_stop_string_across_the_cut(house: House, path: str) -> None:
    """The text is what random bytes give: the stop string is from the middle of it."""
    text = content_of(post(house.here, path, body_of(path))).choices[0].text
    at = len(text) // 2
    stops = [text[at : at + 4], text[at - 4 : at] + "\N{SNOWMAN}"]
    body = body_of(path, stop=stops, **USAGE)
    whole = post(house.here, path, body)
    assert content_of(whole).choices[0].ends == [("stop", stops[0])]
    for num_groups in range(1, len(whole) + 1):
        pieces = whole[:num_groups]
        check_whole([*pieces, *go_on(house.there, path, body, pieces)], whole)


def test_a_stream_goes_to_and_fro_with_the_seed_that_was_drawn(house: House) -> None:
    body = body_of(COMPLETE, seed=None, logprobs=1, n=2, **USAGE)
    pieces = cut(house.here, COMPLETE, body, 9)
    seeds = record_of(pieces).opening.seeds
    servers = [house.there, house.here]
    while len(rest := go_on(servers[0], COMPLETE, body, pieces)) > 7:
        pieces = [*pieces, *rest[:7]]
        servers.reverse()
    assert seeds[0] == seeds[1]
    seeded = body_of(COMPLETE, seed=seeds[0], logprobs=1, n=2, **USAGE)
    check_whole([*pieces, *rest], post(house.there, COMPLETE, seeded), same_id=False)


def test_a_server_is_killed_within_a_stream(house: House) -> None:
    body = body_of(CHAT, max_tokens=400, ignore_eos=True, logprobs=True, **USAGE)
    with serve(house.model, *FLAGS, lora=house.lora) as third:
        url = f"{third.base_url}{CHAT}"
        with httpx.stream("POST", url, content=body, headers=STATE_HEADERS, timeout=60) as response:
            groups = read_groups(response.iter_raw())
            pieces = [next(groups) for _ in range(20)]
            os.kill(third.process.pid, signal.SIGKILL)
            try:
                for group in groups:
                    pieces.append(group)
            except httpx.TransportError:
                pass
    assert len(pieces) < 400
    rest = go_on(house.here, CHAT, body, pieces)
    check_whole([*pieces, *rest], post(house.there, CHAT, body), same_id=False)


def test_replicas_of_other_models_are_told_apart(
    house: House, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_tiny_model(tmp_path_factory.mktemp("other"), "llama", seed=1)
    body = body_of(COMPLETE)
    encoded, headers = resume_request(record_of(cut(house.here, COMPLETE, body, 5)), body)
    with serve(other, *FLAGS) as server:
        answer = httpx.post(f"{server.base_url}{COMPLETE}", content=encoded, headers=headers)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "resume_mismatch"
