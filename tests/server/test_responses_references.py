"""Items of a response's input that stand for items of responses that are kept."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from branchline.gateway.fleet.kept_items import MAX_RESPONSES, item_id

from .conftest import BASE, Harness
from .responses_client import CALL, OUTPUT, PATH, prompt_of, respond, user


def reference(item: dict[str, Any]) -> dict[str, str]:
    return {"type": "item_reference", "id": item["id"]}


async def input_items(harness: Harness, response: dict[str, Any]) -> list[dict[str, Any]]:
    told = await harness.client.get(f"{PATH}/{response['id']}/input_items?order=asc")
    data: list[dict[str, Any]] = told.json()["data"]
    return data


async def refused(harness: Harness, given: Any, **fields: Any) -> dict[str, Any]:
    answer = await harness.post(PATH, {"model": BASE, "input": given, **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_a_reference_is_as_good_as_its_item(harness: Harness) -> None:
    first = await respond(harness, "one")
    [asked] = await input_items(harness, first)
    [said] = first["output"]
    await respond(harness, [user("one"), said, user("two")])
    await respond(harness, [reference(asked), reference(said), user("two")])
    await respond(harness, [user("one"), {"id": said["id"]}, user("two")])
    await respond(harness, [user("one"), {"id": said["id"], "type": None}, user("two")])
    prompts = {prompt_of(harness, index) for index in (1, 2, 3, 4)}
    assert len(prompts) == 1
    assert said["content"][0]["text"] in prompts.pop()


async def test_what_was_referred_to_is_kept_with_the_response(harness: Harness) -> None:
    first = await respond(harness, "one")
    [said] = first["output"]
    second = await respond(harness, [reference(said), user("two")])
    assert (await harness.client.delete(f"{PATH}/{first['id']}")).status_code == 200
    items = await input_items(harness, second)
    assert [item["id"] for item in items][:1] == [said["id"]]
    assert items[0]["content"][0]["text"] == said["content"][0]["text"]
    await respond(harness, "three", previous_response_id=second["id"])
    # The second one is asked first, and holds what the first one said.
    await respond(harness, [reference(said), reference(second["output"][0]), user("three")])
    told = await refused(harness, [reference(said), user("three")])
    assert told["code"] == "item_not_found", "alone it is gone with its response"


async def test_what_is_there_already_is_not_said_twice(harness: Harness) -> None:
    first = await respond(harness, "one")
    [said] = first["output"]
    before = {"previous_response_id": first["id"]}
    await respond(harness, "two", **before)
    await respond(harness, [reference(said), user("two")], **before)
    await respond(harness, [user("one"), said, reference(said), user("two")])
    await respond(harness, [user("one"), reference(said), reference(said), user("two")])
    own = {**said, "id": "msg_own"}
    await respond(harness, [user("one"), own, reference(own), user("two")])
    assert len({prompt_of(harness, index) for index in (1, 2, 3, 4, 5)}) == 1
    await respond(harness, [reference(said)], **before)


async def test_what_says_nothing_to_a_model_is_not_kept_again(harness: Harness) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    first = await respond(harness, "one", **asked)
    [said] = first["output"]
    assert said["content"][0]["logprobs"]
    told = await harness.client.get(f"{PATH}/{first['id']}")
    assert told.json()["output"] == [said], "an answer is kept as it was"
    noted = {**said, "content": [{**said["content"][0], "annotations": [{"type": "x"}]}]}
    bare = {"type": "output_text", "text": said["content"][0]["text"], "annotations": []}
    for given, fields in (
        ("two", {"previous_response_id": first["id"]}),
        ([reference(said), user("two")], {}),
        ([noted, user("two")], {}),
    ):
        second = await respond(harness, given, **fields)
        [kept] = [i for i in await input_items(harness, second) if i["role"] == "assistant"]
        assert (kept["id"], kept["content"]) == (said["id"], [bare])


async def test_calls_and_their_outputs(harness: Harness) -> None:
    first = await respond(harness, [user("a"), CALL, OUTPUT])
    _, call, output = await input_items(harness, first)
    await respond(harness, [user("a"), CALL, OUTPUT, user("b")])
    await respond(harness, [user("a"), reference(call), reference(output), user("b")])
    assert prompt_of(harness, 1) == prompt_of(harness, 2)
    told = await refused(harness, [user("a"), reference(output)])
    assert told["param"] == "input[1].call_id"


async def test_what_is_not_there_is_named(harness: Harness) -> None:
    first = await respond(harness, "one")
    hidden = await respond(harness, "one", store=False)
    [said], [lost] = first["output"], hidden["output"]
    beyond = {"id": item_id("msg", first["id"], "output", 7)}
    for item in (lost, beyond, {"id": "msg_1"}, {"id": item_id("msg", "resp_0", "output", 0)}):
        told = await refused(harness, [user("a"), reference(said), reference(item)])
        assert (told["param"], told["code"]) == ("input[2].id", "item_not_found")
        assert item["id"] in told["message"]
        assert "kept" in told["message"]
    told = await refused(harness, [reference(lost), reference(beyond)])
    assert told["param"] == "input[0].id"


@pytest.mark.parametrize("item", [{"type": "item_reference"}, {"type": "item_reference", "id": 5}])
async def test_a_reference_has_an_id(harness: Harness, item: dict[str, Any]) -> None:
    assert (await refused(harness, [item]))["param"] == "input[0].id"


async def test_no_more_responses_than_allowed_are_fetched(harness: Harness) -> None:
    made = [await respond(harness, str(number)) for number in range(MAX_RESPONSES + 1)]
    items = [reference(one["output"][0]) for one in made]
    told = await refused(harness, items)
    assert told["param"] == "input[0].id"
    assert str(MAX_RESPONSES) in told["message"]
    whole = await respond(harness, items[1:])
    # All of them are in that one now.
    await respond(harness, [*items[1:], reference(whole["output"][0])])


async def test_the_sdk_sends_them(harness: Harness) -> None:
    client = openai.AsyncOpenAI(
        api_key="none", base_url="http://test/v1", http_client=harness.client, max_retries=0
    )
    first = await client.responses.create(model=BASE, input="one")
    told: Any = [{"type": "item_reference", "id": first.output[0].id}, user("two")]
    second = await client.responses.create(model=BASE, input=told)
    page = await client.responses.input_items.list(second.id, order="asc")
    assert page.data[0].id == first.output[0].id
