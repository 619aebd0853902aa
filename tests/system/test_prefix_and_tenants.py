"""Prefix cache, tenants and the admin API over real HTTP, with a real engine behind it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from server_process import ServerProcess, serve

from .conftest import SERVE_FLAGS, Models

pytestmark = pytest.mark.timeout(180)

BLOCK = 16
ADMIN = {"authorization": "Bearer k-admin"}
FLAGS = (
    *("--tenant", "acme=k-acme", "--tenant", "beta=k-beta", "--tenant-weight", "beta=2"),
    *("--fleet-secret", "k-fleet", "--admin-key", "k-admin", "--body-timeout", "2"),
)


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[ServerProcess]:
    with serve(models.model, *SERVE_FLAGS, *FLAGS, lora=models.lora) as running:
        yield running


@pytest.fixture(autouse=True)
def cold(server: ServerProcess) -> None:
    """Every test begins with an empty cache."""
    admin(server, "POST", "/cache/reset")


def admin(server: ServerProcess, method: str, path: str, **options: Any) -> httpx.Response:
    url = f"{server.base_url}/admin{path}"
    return httpx.request(method, url, headers=ADMIN, timeout=30, **options)


def connect(server: ServerProcess, key: str = "k-acme", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.api_url, api_key=key, max_retries=0, timeout=60, **options)


def complete(server: ServerProcess, prompt: object, key: str = "k-acme", **fields: Any) -> Any:
    extra = {"return_token_ids": True, **fields.pop("extra_body", {})}
    with connect(server, key) as client:
        return client.completions.create(
            **{"model": "base", "temperature": 0, "max_tokens": 8, **fields},
            prompt=prompt,  # type: ignore[arg-type]
            extra_body=extra,
        )


def cached(answer: Any) -> int:
    return int(answer.usage.prompt_tokens_details.cached_tokens)


def whole_blocks(num_tokens: int) -> int:
    """How much of a sequence of so many tokens can be found: not its last token."""
    return (num_tokens - 1) // BLOCK * BLOCK


PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 3


def test_a_prompt_is_paid_once(server: ServerProcess) -> None:
    first, second = complete(server, PROMPT), complete(server, PROMPT)
    assert (cached(first), cached(second)) == (0, whole_blocks(len(PROMPT)))
    assert second.choices[0].text == first.choices[0].text
    assert second.usage.prompt_tokens == len(PROMPT)
    longer = complete(server, PROMPT[:64] + "something else altogether")
    assert cached(longer) == 64


def test_a_prompt_of_whole_blocks_computes_its_last_token(server: ServerProcess) -> None:
    prompt = PROMPT[: 8 * BLOCK]
    first, second = complete(server, prompt), complete(server, prompt)
    assert cached(second) in range(7 * BLOCK, 8 * BLOCK)
    assert second.choices[0].text == first.choices[0].text


def test_streams_and_chats_say_so_too(server: ServerProcess) -> None:
    with connect(server) as client:
        chat: dict[str, Any] = {
            "model": "base",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 4,
        }
        first = client.chat.completions.create(**chat)
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(**chat, stream=True, stream_options=options))
    assert cached(first) == 0
    assert cached(chunks[-1]) == whole_blocks(first.usage.prompt_tokens)


def test_choices_of_a_new_prompt_do_not_pass_for_cached(server: ServerProcess) -> None:
    first = complete(server, PROMPT, n=4)
    assert (cached(first), first.usage.prompt_tokens) == (0, len(PROMPT))
    again = complete(server, PROMPT, n=4)
    assert cached(again) == whole_blocks(len(PROMPT))
    computed = server.metric("branchline:computed_prompt_tokens_total")
    complete(server, [PROMPT + "a", PROMPT + "b"])
    spent = server.metric("branchline:computed_prompt_tokens_total") - computed
    assert spent == 2 * (len(PROMPT) + 1 - whole_blocks(len(PROMPT) + 1))


def test_the_next_turn_finds_the_answer(server: ServerProcess) -> None:
    """Ten turns: each pays for its own words and for what does not fill a block."""
    tokens, known = list(PROMPT.encode()), 1
    for turn in range(10):
        answer = complete(server, [tokens], max_tokens=24, extra_body={"ignore_eos": True})
        # The last token of an answer was never computed: nothing came after it.
        assert cached(answer) == whole_blocks(known)
        known = len(tokens) + 24
        tokens += answer.choices[0].token_ids + list(f" turn {turn}, and more of it".encode())


def test_salts_tenants_and_adapters_keep_apart(server: ServerProcess) -> None:
    complete(server, PROMPT)
    full = whole_blocks(len(PROMPT))
    salted = {"extra_body": {"cache_salt": "mine"}}
    other_salt = {"extra_body": {"cache_salt": "other"}}
    assert cached(complete(server, PROMPT, **salted)) == 0
    assert cached(complete(server, PROMPT, **salted)) == full
    assert cached(complete(server, PROMPT, **other_salt)) == 0
    assert cached(complete(server, PROMPT, key="k-beta")) == 0
    assert cached(complete(server, PROMPT, key="k-beta")) == full
    for name in ("tenant-4", "tenant-8"):
        assert cached(complete(server, PROMPT, model=name)) == 0
        assert cached(complete(server, PROMPT, model=name)) == full
    assert cached(complete(server, PROMPT)) == full
    report = admin(server, "GET", "/cache").json()
    names = {(n["tenant"], tuple(n["models"]), n["salted"]) for n in report["namespaces"]}
    assert names >= {
        ("acme", ("base",), False),
        ("acme", ("base",), True),
        ("beta", ("base",), False),
        ("acme", ("tenant-4",), False),
    }


def test_the_gateway_names_tenants(server: ServerProcess) -> None:
    def ask(**headers: str) -> httpx.Response:
        body = {"model": "base", "prompt": PROMPT, "max_tokens": 1}
        url = f"{server.api_url}/completions"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(url, json=body, headers=named, timeout=30)

    fleet = {"x_branchline_fleet_secret": "k-fleet"}
    complete(server, PROMPT)
    for tenant, expected in (("acme", True), ("far", False), ("far", True)):
        answer = ask(**fleet, x_branchline_tenant=tenant, x_branchline_tenant_weight="3").json()
        assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) is expected
    assert ask(x_branchline_fleet_secret="x", x_branchline_tenant="acme").status_code == 401
    assert ask(**fleet, x_branchline_tenant_weight="0").status_code == 400
    rows = {row["name"]: row for row in admin(server, "GET", "/tenants").json()["tenants"]}
    assert rows["far"]["weight"] == 3
    assert rows["far"]["num_prompt_tokens"] == 2 * len(PROMPT)
    assert rows["far"]["num_cached_tokens"] == whole_blocks(len(PROMPT))


def test_the_cache_report_and_reset(server: ServerProcess) -> None:
    complete(server, PROMPT, max_tokens=1)
    complete(server, PROMPT, max_tokens=1)
    report = admin(server, "GET", "/cache?preview=true").json()
    [prefix] = report["prefixes"]
    assert prefix["preview"] == PROMPT[: len(prefix["preview"])] != ""
    assert prefix["num_tokens"] == len(PROMPT) // BLOCK * BLOCK
    assert (prefix["tenant"], prefix["models"]) == ("acme", ["base"])
    [namespace] = [n for n in report["namespaces"] if n["num_blocks"]]
    assert namespace["num_blocks"] == report["num_cached"] == len(PROMPT) // BLOCK
    assert 0 < report["hit_rate"] < 1
    assert "preview" not in admin(server, "GET", "/cache").text
    removed = admin(server, "POST", "/cache/reset").json()
    assert removed == {"blocks_removed": len(PROMPT) // BLOCK}
    assert cached(complete(server, PROMPT)) == 0


def test_a_pin_is_warm_at_once_and_ends(server: ServerProcess) -> None:
    system = [{"role": "system", "content": PROMPT}]
    body = {"model": "tenant-8", "messages": system, "tenant": "acme", "ttl_seconds": 600}
    response = admin(server, "POST", "/cache/pins", json=body)
    assert response.status_code == 201, response.text
    pin = response.json()
    assert pin["num_tokens"] == pin["num_blocks"] * BLOCK > len(PROMPT)
    assert 590 < pin["expires_in"] <= 600
    assert [p["pin_id"] for p in admin(server, "GET", "/cache/pins").json()["pins"]] == [
        pin["pin_id"]
    ]
    pinned = {"tier": "device", "state": "pinned"}
    assert server.metric("branchline:kv_blocks", **pinned) == pin["num_blocks"]
    with connect(server) as client:
        answer = client.chat.completions.create(
            model="tenant-8",
            messages=[*system, {"role": "user", "content": "Go on."}],  # type: ignore[list-item]
            max_tokens=2,
        )
    assert cached(answer) == pin["num_tokens"]
    for expected in (200, 404):
        assert admin(server, "DELETE", f"/cache/pins/{pin['pin_id']}").status_code == expected
    assert server.metric("branchline:kv_blocks", **pinned) == 0
    cold = body | {"messages": [{"role": "user", "content": "?" * 50}], "warm": False}
    assert admin(server, "POST", "/cache/pins", json=cold).status_code == 400


def test_blocks_add_up(server: ServerProcess) -> None:
    complete(server, PROMPT)
    states = ("free", "cached", "pinned", "in_use")
    blocks = {
        state: server.metric("branchline:kv_blocks", tier="device", state=state) for state in states
    }
    assert sum(blocks.values()) == admin(server, "GET", "/cache").json()["num_blocks"]
    assert blocks["cached"] > 0
    assert blocks["in_use"] == 0 == server.metric("vllm:kv_cache_usage_perc")
    queries = server.metric("vllm:prefix_cache_queries_total")
    hits = server.metric("vllm:prefix_cache_hits_total")
    complete(server, PROMPT)
    assert server.metric("vllm:prefix_cache_queries_total") - queries == len(PROMPT)
    assert server.metric("vllm:prefix_cache_hits_total") - hits == whole_blocks(len(PROMPT))


def test_keys_of_one_door_do_not_open_another(server: ServerProcess) -> None:
    for key, path, status in (
        ("k-acme", "/admin/cache", 401),
        ("k-fleet", "/admin/cache", 401),
        ("k-admin", "/v1/models", 401),
        ("k-fleet", "/v1/models", 401),
        ("k-admin", "/admin/cache", 200),
        ("k-beta", "/v1/models", 200),
    ):
        headers = {"authorization": f"Bearer {key}"}
        got = httpx.get(f"{server.base_url}{path}", headers=headers, timeout=30).status_code
        assert got == status, (key, path)
    assert not any(key in server.output() for key in ("k-acme", "k-beta", "k-fleet", "k-admin"))


def test_a_body_that_drips_is_cut_off(server: ServerProcess) -> None:
    port = int(server.base_url.rpartition(":")[2])
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k-acme\r\n"
        b"content-length: 1000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        started = time.monotonic()
        connection.sendall(head + b"{")
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer
    assert 1.5 < time.monotonic() - started < 20, "and the connection was closed"
