"""Kept responses through a gateway: who has the last word, items by reference, a full Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from gateway_process import SECRET, Fleet, fleet
from server_process import wait_for
from tiny_models import make_tiny_model

from branchline.gateway.fleet.headers import FLEET_SECRET, TENANT
from branchline.gateway.fleet.redis_names import RedisNames

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

RESPONSES = "/v1/responses"
UNKNOWN = f"resp_{'0' * 32}"
AS_A_GATEWAY = {FLEET_SECRET: SECRET, TENANT: "acme"}
GREEDY: dict[str, Any] = {"model": BASE, "temperature": 0, "max_output_tokens": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("kept")
    return str(make_tiny_model(root / "model", "llama", max_position_embeddings=4096))


@pytest.fixture(scope="module")
def shared(model: str) -> Iterator[Fleet]:
    with fleet(model, serve_flags=SERVE_FLAGS) as running:
        yield running


@pytest.fixture
def client(shared: Fleet) -> Iterator[openai.OpenAI]:
    url = f"{shared.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(house: Fleet, **fields: Any) -> httpx.Response:
    body = {**GREEDY, "input": "and then?", **fields}
    headers = {"x-branchline-route": "1"}
    return httpx.post(f"{house.url}{RESPONSES}", json=body, headers=headers, timeout=60)


def num_retries(answer: httpx.Response) -> int:
    return int(answer.headers["x-branchline-route"].rpartition("retries=")[2])


def test_with_redis_one_replica_says_what_all_would(shared: Fleet) -> None:
    refused = ask(shared, previous_response_id=UNKNOWN)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert num_retries(refused) == 0
    item = {"type": "item_reference", "id": f"msg_{'0' * 37}"}
    refused = ask(shared, input=[item])
    assert refused.json()["error"]["code"] == "item_not_found"
    assert num_retries(refused) == 0
    for method in ("GET", "DELETE"):
        told = httpx.request(method, f"{shared.url}{RESPONSES}/{UNKNOWN}", timeout=10)
        assert told.status_code == 404
        assert told.json()["error"]["code"] == "response_not_found"


def test_without_redis_each_replica_is_asked(model: str) -> None:
    with fleet(model, serve_flags=SERVE_FLAGS, with_redis=False) as house:
        refused = ask(house, previous_response_id=UNKNOWN)
        assert refused.json()["error"]["code"] == "previous_response_not_found"
        assert num_retries(refused) == 1
        made = ask(house).json()
        [said] = made["output"]
        for _ in range(4):
            assert ask(house, previous_response_id=made["id"]).status_code == 200
            reference = {"type": "item_reference", "id": said["id"]}
            assert ask(house, input=[reference]).status_code == 200
            assert httpx.get(f"{house.url}{RESPONSES}/{made['id']}").status_code == 200


def test_items_are_referred_to_at_any_replica(client: openai.OpenAI) -> None:
    first = client.responses.create(input="A question about the weather", **GREEDY)
    asked: Any = {"role": "user", "content": "A question about the weather"}
    last: Any = {"role": "user", "content": "and then?"}
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    whole = client.responses.create(input="and then?", previous_response_id=first.id, **GREEDY)
    for _ in range(4):
        second = client.responses.create(input=[asked, reference, last], **GREEDY)
        assert second.output_text == whole.output_text
        assert second.usage is not None
        assert whole.usage is not None
        assert second.usage.input_tokens == whole.usage.input_tokens


def test_paths_below_messages_have_anthropics_errors(shared: Fleet) -> None:
    for url in (shared.url, shared.replicas["replica-1"].base_url):
        with anthropic.Anthropic(
            base_url=url, api_key="none", max_retries=0, default_headers=AS_A_GATEWAY
        ) as claude:
            for status, call in (
                (404, lambda c=claude: c.messages.batches.list()),
                (404, lambda c=claude: c.post("/v1/messages/nothing", cast_to=object)),
                (405, lambda c=claude: c.get("/v1/messages", cast_to=object)),
            ):
                with pytest.raises(anthropic.APIStatusError) as caught:
                    call()
                error: Any = caught.value
                assert error.status_code == status
                assert error.body["type"] == "error"
                kind = "not_found_error" if status == 404 else "invalid_request_error"
                assert error.body["error"]["type"] == kind
                assert error.body["request_id"] == error.request_id


def total(house: Fleet, name: str) -> float:
    return sum(replica.metric(name) for replica in house.replicas.values())


def test_a_full_redis_answers_and_keeps_no_more(shared: Fleet, client: openai.OpenAI) -> None:
    assert shared.redis is not None
    with shared.redis.client() as redis:
        redis.delete(*RedisNames("default").responses("default"))
        kept = client.responses.create(input="hello", **GREEDY)
        # Beyond nine tenths of it, and with room for reports and limits.
        redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.08))
        try:
            before = total(shared, "branchline:responses_no_room_total")
            for stream in (False, True):
                answer = ask(shared, input=os.urandom(750).hex(), stream=stream)
                assert answer.status_code == 200, answer.text
                assert '"store":false' in answer.text.rpartition("data: ")[2]
            assert total(shared, "branchline:responses_no_room_total") == before + 2
            assert client.responses.retrieve(kept.id).output_text == kept.output_text
            went_on = ask(shared, previous_response_id=kept.id)
            assert went_on.status_code == 200
        finally:
            redis.config_set("maxmemory", 0)
    assert shared.state()["redis"] == "up"
    shared.wait_until_up()
    wait_for(lambda: ask(shared).json()["store"], 10.0, shared.output)
