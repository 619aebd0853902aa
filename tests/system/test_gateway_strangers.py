"""Whatever a client sends through a gateway's socket: no fault of ours, and no one else's model."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from gateway_process import fleet
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from server_process import wait_for
from tenant_fleet import TenantFleet

from .conftest import Models

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

MINE, THEIRS = "tenant-4", "tenant-8"
HELLO = [{"role": "user", "content": "hello there"}]
CHAT: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 4}
PATHS = ("/v1/chat/completions", "/v1/completions")

bounded = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
names = st.sampled_from(
    [
        *("mine", THEIRS, MINE, BASE, "theirs", "*", "", None, 5, [THEIRS], {"id": THEIRS}),
        *(f" {THEIRS}", f"{THEIRS}\n", "fleet/" + "0" * 32, f"../{THEIRS}", "MINE", "m" * 5000),
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=8), scalars)
fields = st.dictionaries(
    st.sampled_from(
        [
            *("temperature", "top_p", "n", "seed", "stop", "logprobs", "stream_options", "user"),
            *("cache_salt", "logit_bias", "messages", "prompt", "priority", "prompt_cache_key"),
            *("x-branchline-model", "add_special_tokens", "chat_template_kwargs", "adapter"),
        ]
    ),
    values,
    max_size=3,
)
header_names = st.sampled_from(
    [
        *("x-branchline-model", "x-branchline-tenant", "x-branchline-cache-group", "traceparent"),
        *("x-branchline-fleet-secret", "x-branchline-resume", "x-branchline-stream-state"),
        *("x-branchline-priority", "x-api-key", "x-branchline-route", "x-request-id", "cookie"),
    ]
)
header_values = st.sampled_from([THEIRS, "theirs", "", "1", "{}", "a" * 200]) | st.text(
    st.characters(min_codepoint=32, max_codepoint=126), max_size=30
)
headers = st.dictionaries(header_names, header_values, max_size=4)


@pytest.fixture(scope="module")
def house(models: Models) -> Iterator[TenantFleet]:
    flags = (*SERVE_FLAGS, "--max-model-len", "512")
    with fleet(models.model, replicas=1, lora=models.lora, serve_flags=flags) as running:
        made = TenantFleet(running)
        made.tenant("acme", "--model", f"mine={MINE}")
        made.tenant("theirs", "--model", f"theirs={THEIRS}")
        yield made
        _check_log(made)


def _check_log(house: TenantFleet) -> None:
    """What the gateway did in all of these tests, as its own log has it."""
    lines = [json.loads(s) for s in house.fleet.gateway.output().splitlines() if s[:1] == "{"]
    assert len(lines) > 50
    assert {line["adapter"] for line in lines if line["tenant"] == "acme"} <= {MINE, None, ""}
    assert not [line for line in lines if line["tenant"] == "theirs" and line["status"] == 200]
    assert all(line["status"] < 500 for line in lines)


@pytest.fixture(scope="module")
def client(house: TenantFleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.fleet.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def said(house: TenantFleet, client: httpx.Client) -> str:
    """What the tenant's own model answers."""
    answer = client.post(PATHS[0], json={**CHAT, "model": "mine"}, headers=_key(house))
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def _key(house: TenantFleet) -> dict[str, str]:
    return {"authorization": f"Bearer {house.keys['acme']}", "content-type": "application/json"}


@bounded
@given(model=st.just("mine") | names, more=st.just({}) | fields, sent=headers)
@example(model="mine", more={}, sent={"x-branchline-model": THEIRS})
@example(model=THEIRS, more={}, sent={"x-branchline-tenant": "theirs"})
@example(model="mine", more={}, sent={"x-branchline-fleet-secret": "wrong", "x-api-key": "bl-"})
def test_no_body_and_no_header_gets_another_model(
    house: TenantFleet,
    client: httpx.Client,
    said: str,
    model: object,
    more: dict[str, Any],
    sent: dict[str, str],
) -> None:
    body = json.dumps({**CHAT, **more, "model": model}).encode("utf-8", "surrogatepass")
    asked = {**sent, **_key(house), "x-branchline-route": "1"}
    answer = client.post(PATHS["prompt" in more], content=body, headers=asked)
    assert answer.status_code < 500, answer.text
    if answer.status_code == 200:
        assert model == "mine"
        assert answer.json()["model"] == "mine"
        assert answer.headers["x-branchline-route"]
        if not more:
            assert answer.json()["choices"][0]["message"]["content"] == said
    elif not more and model == THEIRS:
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


def _pieces(key: str) -> st.SearchStrategy[str]:
    """A key that is nearly right."""
    places = st.integers(0, len(key) - 1)
    return st.one_of(
        places.map(lambda at: key[:at]),
        places.map(lambda at: key[:at] + ("A" if key[at] != "A" else "B") + key[at + 1 :]),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
        st.sampled_from([key + "=", key.swapcase(), f'"{key}"', "bl-", "*", "sk-x"]),
    )


@bounded
@given(data=st.data(), scheme=st.sampled_from(["Bearer ", "bearer  ", "Basic ", "", "x-api-key"]))
def test_only_the_key_itself_opens(
    house: TenantFleet, client: httpx.Client, data: st.DataObject, scheme: str
) -> None:
    """Others are nobody: the anonymous tenant here, and never one whose key it nearly is."""
    key = data.draw(_pieces(house.keys["acme"]))
    sent = (
        {"x-api-key": key} if scheme == "x-api-key" else {"authorization": (scheme + key).strip()}
    )
    answer = client.get("/v1/models", headers=sent)
    if answer.status_code == 200:  # without a key of ours: all the names that there are
        assert "mine" not in {card["id"] for card in answer.json()["data"]}
    else:
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


HEADS = (
    *(b"GET / HTTP/9.9\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"POST " + b"/" * 70_000),
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n"
    b"content-length: 3\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n"
    b"content-length: 2\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer a\r\n"
    b"authorization: Bearer b\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /admin/../v1/models HTTP/1.1\r\nhost: h\r\n\r\n",
    b"GET /v1/models/%00%ff HTTP/1.1\r\nhost: h\r\nx-api-key: \xff\xfe\r\n\r\n",
)


@bounded
@given(sent=st.sampled_from(HEADS) | st.binary(max_size=200))
def test_any_bytes_on_the_socket(house: TenantFleet, sent: bytes) -> None:
    url = httpx.URL(house.fleet.url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while piece := connection.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
    if got:
        version, status, *_ = got.split(b" ", 2)
        assert version == b"HTTP/1.1"
        assert int(status) < 500


def test_it_still_serves_and_counted_only_the_tenants_own(house: TenantFleet, said: str) -> None:
    """Last."""
    with house.connect("acme") as client:
        answer = client.chat.completions.create(model="mine", **CHAT)
    assert answer.choices[0].message.content == said
    wait_for(lambda: MINE in _labels(house, "acme"), 10)
    assert _labels(house, "acme") == {MINE}
    assert not _labels(house, "theirs")


def _labels(house: TenantFleet, name: str) -> set[str]:
    report = json.loads(house.run("usage", name, "--json"))
    return {row["label"] for row in report["rows"]}
