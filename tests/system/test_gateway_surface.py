"""Every endpoint through two gateways to two real replicas, with the SDKs that people use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from gateway_process import fleet
from server_process import wait_for
from surface_streams import CHAT, MESSAGES, RESPONSES
from tenant_fleet import TenantFleet
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ADAPTER = "voice"
ACME, OTHER = "acme", "other"
NAMES = ("mine", BASE)
SYSTEM = "You are a clerk who answers in few words and looks everything up. " * 12
QUESTION = "How is the weather in Llanfair today, and how will it be tomorrow? " * 6
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Tells the weather.", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TenantFleet]:
    root = tmp_path_factory.mktemp("surface")
    model = make_tiny_model(root / "model", "llama", max_position_embeddings=4096)
    lora = {ADAPTER: make_adapter(model, root / ADAPTER, 8, seed=8)}
    with fleet(model, gateways=2, lora=lora, serve_flags=SERVE_FLAGS) as running:
        tenants = TenantFleet(running)
        tenants.tenant(ACME, "--model", f"mine={ADAPTER}", "--model", BASE)
        tenants.tenant(OTHER, "--model", BASE)
        yield tenants


@pytest.fixture
def acme(house: TenantFleet) -> Iterator[openai.OpenAI]:
    with house.connect(ACME) as client:
        yield client


@pytest.fixture
def claude(house: TenantFleet) -> Iterator[anthropic.Anthropic]:
    url, key = house.fleet.url, house.keys[ACME]
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        yield client


def post(
    house: TenantFleet, path: str, body: dict[str, Any], tenant: str = ACME, gateway: int = 0
) -> httpx.Response:
    headers = {"authorization": f"Bearer {house.keys[tenant]}", "x-branchline-route": "1"}
    url = f"{house.fleet.gateways[gateway].base_url}{path}"
    return httpx.post(url, json=body, headers=headers, timeout=60)


def replica_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-branchline-route"].partition(";")[0].removeprefix("replica=")


@pytest.mark.parametrize("model", NAMES)
def test_openais_endpoints(acme: openai.OpenAI, model: str) -> None:
    asked: Any = [{"role": "user", "content": "hello"}]
    chat = acme.chat.completions.create(model=model, messages=asked, max_tokens=5)
    text = acme.completions.create(model=model, prompt="hello", max_tokens=5, n=2, best_of=3)
    response = acme.responses.create(model=model, input="hello", max_output_tokens=20)
    assert chat.model == text.model == response.model == model
    assert len(text.choices) == 2
    assert response.usage is not None
    assert response.usage.output_tokens <= 20
    final: Any = None
    with acme.responses.stream(model=model, input="hello", max_output_tokens=20) as stream:
        for event in stream:
            final = event
    assert final.type in ("response.completed", "response.incomplete")
    vectors = acme.embeddings.create(model=model, input=["one", "two", "one"]).data
    assert vectors[0].embedding == pytest.approx(vectors[2].embedding, abs=1e-4)
    assert vectors[0].embedding != pytest.approx(vectors[1].embedding, abs=1e-4)


@pytest.mark.parametrize("model", NAMES)
def test_anthropics_endpoints(claude: anthropic.Anthropic, model: str) -> None:
    asked: Any = [{"role": "user", "content": "hello"}]
    counted = claude.messages.count_tokens(model=model, messages=asked)
    answer = claude.messages.create(model=model, messages=asked, max_tokens=6)
    assert answer.model == model
    assert answer._request_id
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with claude.messages.stream(model=model, messages=asked, max_tokens=6) as stream:
        assert stream.get_final_message().stop_reason in ("max_tokens", "end_turn")


def test_tokenize_and_back(house: TenantFleet) -> None:
    for model in NAMES:
        told = post(house, "/tokenize", {"model": model, "prompt": "hello there"}).json()
        assert told["count"] == len(told["tokens"]) > 0
        back = post(house, "/detokenize", {"model": model, "tokens": told["tokens"]}).json()
        assert back["prompt"] == "hello there"
    told = post(house, "/tokenize", {"prompt": "hello there"}).json()
    assert told["count"] == len(told["tokens"]) > 0


BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    RESPONSES: {"input": "hi", "max_output_tokens": 16},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
}


@pytest.mark.parametrize("path", BODIES)
def test_names_are_a_tenants_own_everywhere(house: TenantFleet, path: str) -> None:
    assert post(house, path, {"model": "mine", **BODIES[path]}).status_code == 200
    refused = {
        name: post(house, path, {"model": name, **BODIES[path]}, tenant=OTHER)
        for name in ("mine", ADAPTER, "nosuch")
    }
    assert {answer.status_code for answer in refused.values()} == {404}
    told = {_told(answer).replace(name, "NAME") for name, answer in refused.items()}
    assert len(told) == 1, "a name of another's looks different from none"
    key = {"x-api-key": house.keys[ACME][:-4] + "0000"}
    body = {"model": BASE, **BODIES[path]}
    assert httpx.post(f"{house.fleet.url}{path}", json=body, headers=key).status_code == 401


def _told(answer: httpx.Response) -> str:
    """All but the request's own id."""
    return str({key: value for key, value in answer.json().items() if key != "request_id"})


def test_models_are_a_tenants_own(house: TenantFleet) -> None:
    for tenant, names in ((ACME, set(NAMES)), (OTHER, {BASE})):
        with house.connect(tenant) as client:
            assert {model.id for model in client.models.list()} == names


def test_a_kept_response_is_its_tenants(house: TenantFleet, acme: openai.OpenAI) -> None:
    kept = acme.responses.create(model=BASE, input="hello", max_output_tokens=16)
    assert acme.responses.retrieve(kept.id).output_text == kept.output_text
    [item] = acme.responses.input_items.list(kept.id).data
    assert item.type == "message"
    with house.connect(OTHER, gateway=1) as other:
        for ask in (other.responses.retrieve, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(kept.id)
        with pytest.raises(openai.NotFoundError):
            other.responses.input_items.list(kept.id)
        with pytest.raises(openai.BadRequestError) as caught:
            other.responses.create(model=BASE, input="and?", previous_response_id=kept.id)
        assert caught.value.code == "previous_response_not_found"
    assert acme.responses.retrieve(kept.id).id == kept.id
    acme.responses.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        acme.responses.retrieve(kept.id)


GREEDY: dict[str, Any] = {"model": BASE, "temperature": 0, "max_output_tokens": 24}


def test_a_conversation_goes_on_at_whichever_replica(house: TenantFleet) -> None:
    """The one that answered the first turn leaves before the second."""
    first = post(house, RESPONSES, {**GREEDY, "instructions": SYSTEM, "input": QUESTION})
    answered, kept = replica_of(first), first.json()
    follow = {**GREEDY, "input": "And then?", "previous_response_id": kept["id"]}
    here = post(house, RESPONSES, follow, gateway=1)
    house.fleet.replicas[answered].terminate()
    assert house.fleet.replicas[answered].wait(60) == 0
    there = post(house, RESPONSES, follow)
    assert replica_of(there) != answered
    history = [{"role": "user", "content": QUESTION}, *kept["output"]]
    asked = [*history, {"role": "user", "content": "And then?"}]
    at_once = post(house, RESPONSES, {**GREEDY, "input": asked})
    texts = [_text_of(answer.json()) for answer in (here, there, at_once)]
    assert texts[0] == texts[1] == texts[2] != ""
    house.fleet.start_replica(answered)
    house.fleet.replicas[answered].wait_until_ready(120)
    house.fleet.wait_until_up()


def _text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"] for item in response["output"] for part in item.get("content") or ()
    )


def _chat_turns(answer: dict[str, Any] | None) -> dict[str, Any]:
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
    ]
    body = {"tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 200}
    if answer is not None:
        message = answer["choices"][0]["message"]
        call = message["tool_calls"][0]
        messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": "Rain."}]
        return {**body, "messages": messages}
    return {**body, "messages": messages, "tool_choice": "required"}


def _response_turns(answer: dict[str, Any] | None) -> dict[str, Any]:
    body = {
        "instructions": SYSTEM,
        "tools": [{"type": "function", **FUNCTION}],
        "max_output_tokens": 200,
    }
    if answer is None:
        return {**body, "input": QUESTION, "tool_choice": "required"}
    call = next(item for item in answer["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Rain."}
    return {**body, "input": [output], "previous_response_id": answer["id"]}


def _message_turns(answer: dict[str, Any] | None) -> dict[str, Any]:
    tool = {"name": FUNCTION["name"], "description": FUNCTION["description"]}
    body = {
        "system": SYSTEM,
        "tools": [{**tool, "input_schema": SCHEMA}],
        "max_tokens": 200,
    }
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    if answer is None:
        return {**body, "messages": messages, "tool_choice": {"type": "any"}}
    call = next(block for block in answer["content"] if block["type"] == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "Rain."}
    messages += [
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [result]},
    ]
    return {**body, "messages": messages}


TURNS = {CHAT: _chat_turns, RESPONSES: _response_turns, MESSAGES: _message_turns}


@pytest.mark.parametrize("path", TURNS)
def test_a_turn_with_tools_goes_where_its_prefix_is(house: TenantFleet, path: str) -> None:
    """The other gateway has seen nothing of the first turn: it goes by what replicas publish."""
    common = {"model": BASE, "temperature": 0, "cache_salt": path}
    first = post(house, path, {**common, **TURNS[path](None)})
    replica, answer = replica_of(first), first.json()
    body = {**common, **TURNS[path](answer)}
    url = house.fleet.gateways[1].base_url

    def matched() -> dict[str, int]:
        told = httpx.post(
            f"{url}/debug/route",
            params={"tenant": ACME, "endpoint": path},
            content=json.dumps(body),
            timeout=10,
        )
        assert told.status_code == 200, told.text
        return dict(told.json()["num_matched_tokens"])

    # Most of the prompt is known there: system, tools and question.
    wait_for(lambda: matched().get(replica, 0) > 500, 15.0, lambda: str(matched()))
    assert set(matched()) == {replica}
    second = post(house, path, body, gateway=1)
    assert replica_of(second) == replica
    assert "cached=0" not in second.headers["x-branchline-route"]
    usage = second.json()["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = usage.get("cache_read_input_tokens") or details.get("cached_tokens")
    assert cached > 500
