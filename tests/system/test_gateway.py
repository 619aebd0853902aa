"""The OpenAI client through a gateway to real replicas, found through a real Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from gateway_process import SECRET, Fleet, fleet
from server_process import metric_of, wait_for

from .conftest import BASE, SERVE_FLAGS, Models

pytestmark = pytest.mark.timeout(240)

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
LONG: dict[str, Any] = {"max_tokens": 400, "extra_body": {"ignore_eos": True}, "seed": 7}


@pytest.fixture(scope="module")
def house(models: Models) -> Iterator[Fleet]:
    flags = (*SERVE_FLAGS, "--max-queued-requests", "64")
    with fleet(models.model, lora=models.lora, serve_flags=flags) as house:
        yield house


@pytest.fixture(scope="module")
def client(house: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def text_of(stream: Any) -> str:
    return "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)


def test_models_are_the_fleets(client: openai.OpenAI, models: Models) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {BASE, *models.lora}
    assert client.models.retrieve("tenant-8").id == "tenant-8"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("model", [BASE, "tenant-4", "tenant-16"])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, **GREEDY)
    stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **GREEDY)
    assert text_of(stream) == whole.choices[0].message.content
    assert whole.model == model
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12


def test_usage_in_a_stream_is_the_replicas(client: openai.OpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(model=BASE, messages=MESSAGES, **options, **GREEDY)
    )
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_text_completions_with_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=["one", "two"], n=2, max_tokens=4, seed=1)
    assert len(answer.choices) == 4
    stream = client.completions.create(
        model=BASE, prompt=["one", "two"], n=2, max_tokens=4, seed=1, stream=True
    )
    texts = ["", "", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]


def test_errors_are_the_replicas_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=BASE, messages=MESSAGES, temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=5, messages=MESSAGES)  # type: ignore[call-overload]
    assert wrong.value.param == "model"


def test_prefixes_are_found_again(house: Fleet) -> None:
    url = f"{house.url}/v1/chat/completions"
    chats = [
        {"model": BASE, "max_tokens": 2, "messages": [{"role": "user", "content": f"{n} " * 400}]}
        for n in range(6)
    ]
    first = [_route(httpx.post(url, json=chat, headers=ASK, timeout=60)) for chat in chats]
    assert all(route["replica"] in house.replicas for route in first)

    def is_found() -> bool:
        again = [_route(httpx.post(url, json=chat, headers=ASK, timeout=60)) for chat in chats]
        at_home = [a["replica"] == b["replica"] for a, b in zip(first, again, strict=True)]
        return all(at_home) and all(int(route["cached"]) > 100 for route in again)

    wait_for(is_found, 20, house.output)


ASK = {"x-branchline-route": "1"}


def _route(response: httpx.Response) -> dict[str, str]:
    response.raise_for_status()
    parts = response.headers["x-branchline-route"].split("; ")
    return dict(part.split("=", 1) for part in parts)


def test_a_leaving_client_stops_the_replica(house: Fleet) -> None:
    body = {"model": BASE, "messages": MESSAGES, "stream": True, "ignore_eos": True}
    url = f"{house.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        next(response.iter_raw())
    servers = house.replicas.values()
    wait_for(lambda: not sum(s.metric("vllm:num_requests_running") for s in servers), 5)


def test_a_probe_with_the_secret_generates(house: Fleet) -> None:
    body = {"model": BASE, "messages": MESSAGES, "max_tokens": 1}
    headers = {"x-branchline-fleet-secret": SECRET}
    url = f"{house.url}/v1/chat/completions"
    assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200


def test_log_and_metrics(house: Fleet, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tenant-4", messages=MESSAGES, **GREEDY)

    def last_line() -> dict[str, Any]:
        lines = [line for line in house.gateway.output().splitlines() if line.startswith("{")]
        return dict(json.loads(lines[-1])) if lines else {}

    wait_for(lambda: last_line().get("model") == "tenant-4", 5, house.output)
    last = last_line()
    assert (last["status"], last["tenant"]) == (200, "default")
    assert last["replica"] in house.replicas
    assert last["output_tokens"] > 0
    assert "hello there" not in house.gateway.output()
    text = httpx.get(f"{house.url}/metrics").text
    assert metric_of(text, "branchline_gateway_replicas_up") == 2
    assert metric_of(text, "branchline_gateway_redis_up") == 1
    assert metric_of(text, "branchline_gateway_store_up") == 1
    assert metric_of(text, "branchline_gateway_store_behind_seconds") < 5


@pytest.mark.slow
def test_a_killed_replica_is_not_noticed(house: Fleet, client: openai.OpenAI) -> None:
    """Last: it leaves one replica. Sampled streams, both of them, go on as if nothing were."""
    asked = {"model": BASE, "messages": MESSAGES, **LONG}
    undisturbed = client.chat.completions.create(**asked).choices[0].message.content
    streams = [client.chat.completions.create(stream=True, **asked) for _ in range(4)]
    texts = [next(iter(stream)).choices[0].delta.content or "" for stream in streams]
    house.kill("replica-1")
    texts = [text + text_of(stream) for text, stream in zip(texts, streams, strict=True)]
    assert texts == [undisturbed] * 4
    answer = client.chat.completions.create(model=BASE, messages=MESSAGES, **GREEDY)
    assert answer.choices
    house.replicas.pop("replica-1")
    house.wait_until_up(seconds=20)


def test_sigterm_lets_a_stream_finish(models: Models, house: Fleet) -> None:
    gateway = house.start_gateway()
    gateway.wait_until_ready(60)
    with openai.OpenAI(base_url=gateway.api_url, api_key="any", max_retries=0) as client:
        asked = {"model": BASE, "messages": MESSAGES, **LONG}
        stream = iter(client.chat.completions.create(stream=True, **asked))
        next(stream)
        gateway.terminate()
        wait_for(lambda: gateway.status("/ready") in (503, None), 5)
        finish = [c.finish_reason for chunk in stream for c in chunk.choices if c.finish_reason]
    assert finish == ["length"]
    assert gateway.wait() == 0
    house.gateways.remove(gateway)


@pytest.mark.slow
def test_static_members_without_redis(models: Models) -> None:
    """Adapters of their own, tenants in memory; a replica that is killed is passed over."""
    flags = (*SERVE_FLAGS, "--fleet-secret", SECRET)
    with fleet(models.model, lora=models.lora, serve_flags=flags, with_redis=False) as house:
        assert house.state()["redis"] == "none"
        assert "not shared" in house.gateway.output()
        client = openai.OpenAI(base_url=f"{house.url}/v1", api_key="any", max_retries=0)
        asked: Any = {"model": "tenant-4", "messages": MESSAGES, **GREEDY}
        before = client.chat.completions.create(**asked).choices[0].message.content
        (killed, *_) = house.replicas
        house.kill(killed)
        for _ in range(4):
            assert client.chat.completions.create(**asked).choices[0].message.content == before
