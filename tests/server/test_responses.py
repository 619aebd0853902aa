"""``/v1/responses`` over an engine in memory: answers, conversations, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import say

from branchline.server.chat import open_chat_answer
from branchline.server.responses import open as open_module

from .conftest import BASE, Harness
from .responses_client import PATH, prompt_of, respond, user


async def test_a_text_is_a_users_message(harness: Harness) -> None:
    body = await respond(harness, temperature=0)
    assert prompt_of(harness) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert body["object"] == "response"
    assert body["status"] == "completed"
    assert body["id"].startswith("resp_")
    [item] = body["output"]
    assert item["type"] == "message"
    assert item["id"].startswith("msg_")
    assert item["content"] == [
        {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    ]
    num_prompt = len(harness.engine.requests[0].prompt_token_ids)
    assert body["usage"] == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + 6,
    }


async def test_instructions_and_items_become_messages(harness: Harness) -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    await respond(
        harness,
        [
            {"role": "developer", "content": "dev"},
            {"type": "message", "role": "user", "content": parts},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "yes", "annotations": []}],
            },
            user("c"),
        ],
        instructions="sys",
    )
    assert prompt_of(harness) == (
        "<|im_start|>system\nsys<|im_end|>\n<|im_start|>system\ndev<|im_end|>\n"
        "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_a_conversation_goes_on_from_a_kept_response(harness: Harness) -> None:
    first = await respond(harness, "one", instructions="only once")
    second = await respond(harness, "two", previous_response_id=first["id"])
    third = await respond(harness, "three", previous_response_id=second["id"])
    assert third["previous_response_id"] == second["id"]
    assert prompt_of(harness) == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    ), "instructions are of one request alone"
    again = await respond(harness, "two b", previous_response_id=first["id"])
    assert prompt_of(harness).endswith("two b<|im_end|>\n<|im_start|>assistant\n"), "it branches"
    assert again["id"] != second["id"]


async def test_a_kept_response_can_be_read_and_deleted(harness: Harness) -> None:
    made = await respond(harness, "one", metadata={"a": "b"}, user="u")
    place = f"{PATH}/{made['id']}"
    got = await harness.client.get(place)
    assert got.json() == made
    assert made["metadata"] == {"a": "b"}
    assert made["store"] is True
    gone = await harness.client.delete(place)
    assert gone.json() == {"id": made["id"], "object": "response", "deleted": True}
    for answer in (await harness.client.get(place), await harness.client.delete(place)):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "response_not_found"
    body = {"model": BASE, "input": "x", "previous_response_id": made["id"]}
    answer = await harness.post(PATH, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (
        "previous_response_id",
        "previous_response_not_found",
    )


async def test_store_false_is_not_kept(harness: Harness) -> None:
    made = await respond(harness, store=False)
    assert made["store"] is False
    assert (await harness.client.get(f"{PATH}/{made['id']}")).status_code == 404


async def test_input_items_come_in_pages(harness: Harness) -> None:
    first = await respond(harness, "one")
    second = await respond(harness, [user("two"), user("three")], previous_response_id=first["id"])
    place = f"{PATH}/{second['id']}/input_items"

    async def page(**query: Any) -> dict[str, Any]:
        body: dict[str, Any] = (await harness.client.get(place, params=query)).json()
        return body

    def texts(page: dict[str, Any]) -> list[str]:
        return [item["content"][0]["text"] for item in page["data"]]

    newest = await page()
    assert texts(newest) == ["three", "two", "hello", "one"]
    assert newest["has_more"] is False
    start = await page(order="asc", limit=3)
    assert texts(start) == ["one", "hello", "two"]
    assert start["has_more"] is True
    assert start["last_id"] == start["data"][-1]["id"]
    rest = await page(order="asc", limit=3, after=start["last_id"])
    assert texts(rest) == ["three"]
    assert len({item["id"] for item in newest["data"]}) == 4
    assert "error" in await page(after="msg_none")
    assert "error" in await page(limit=0)
    assert "error" in await page(order="up")


async def test_cancel_is_for_what_runs_in_the_background(harness: Harness) -> None:
    made = await respond(harness)
    answer = await harness.post(f"{PATH}/{made['id']}/cancel", {})
    assert answer.status_code == 400
    assert (await harness.post(f"{PATH}/resp_{'0' * 32}/cancel", {})).status_code == 404
    streamed = await harness.client.get(f"{PATH}/{made['id']}", params={"stream": True})
    assert streamed.status_code == 400


async def test_a_cut_answer_is_incomplete(harness: Harness) -> None:
    body = await respond(harness, max_output_tokens=2)
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["completed_at"] is None
    assert body["output"][0]["status"] == "incomplete"
    assert body["output"][0]["content"][0]["text"] == "he"


async def test_an_answer_of_nothing_has_an_empty_message(harness: Harness) -> None:
    harness.engine.script = say("")
    body = await respond(harness)
    assert body["output"][0]["content"][0]["text"] == ""


FIELDS: list[tuple[str, Any, str, Any]] = [
    ("temperature", 0.5, "temperature", 0.5),
    ("top_p", 0.5, "top_p", 0.5),
    ("max_output_tokens", 3, "max_tokens", 3),
    ("seed", 5, "seed", 5),
    ("top_k", 5, "top_k", 5),
    ("min_p", 0.1, "min_p", 0.1),
    ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
    ("presence_penalty", -1, "presence_penalty", -1),
    ("frequency_penalty", 1, "frequency_penalty", 1),
    ("logit_bias", {"5": 1.5}, "logit_bias", {5: 1.5}),
    ("stop", "x", "stop", ("x",)),
    ("stop_token_ids", [3], "stop_token_ids", (3,)),
    ("ignore_eos", True, "ignore_eos", True),
]


@pytest.mark.parametrize(("field", "value", "name", "expected"), FIELDS)
async def test_fields_reach_the_engine(
    harness: Harness, field: str, value: Any, name: str, expected: Any
) -> None:
    await respond(harness, **{"max_output_tokens": 3, field: value})
    assert getattr(harness.engine.requests[0].params, name) == expected


async def test_terms_reach_the_engine(harness: Harness) -> None:
    await respond(harness, cache_salt="s", priority=3)
    request = harness.engine.requests[0]
    assert request.priority == 3
    plain = await respond(harness)
    assert harness.engine.requests[1].cache_salt != request.cache_salt
    assert plain["status"] == "completed"


async def test_logprobs_are_those_of_the_text(harness: Harness) -> None:
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    body = await respond(harness, include=include, top_logprobs=2)
    logprobs = body["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == list("hello"), "not the end token's"
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2] * 5
    plain = await respond(harness)
    assert plain["output"][0]["content"][0]["logprobs"] == []


async def test_truncation_drops_the_oldest_items(harness: Harness) -> None:
    turns = [user(f"{index:02d}" * 40) for index in range(20)]
    items = [{"role": "system", "content": "keep me"}, *turns]
    refused = await harness.post(PATH, {"model": BASE, "input": items})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    body = await respond(harness, items, truncation="auto")
    prompt = prompt_of(harness)
    assert "keep me" in prompt
    assert "19" * 40 in prompt
    assert "00" * 40 not in prompt
    assert body["usage"]["input_tokens"] > 512 - 150, "no more than has to be"
    alone = await harness.post(PATH, {"model": BASE, "input": "x" * 2000, "truncation": "auto"})
    assert alone.json()["error"]["code"] == "context_length_exceeded"


async def test_what_is_far_too_long_is_dropped_before_any_prompt_is_made(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    async def opened(services: Any, chat: Any, *rest: Any, **options: Any) -> Any:
        lengths.append(len(chat.model_dump_json()))
        return await open_chat_answer(services, chat, *rest, **options)

    monkeypatch.setattr(open_module, "open_chat_answer", opened)
    long = [user(f"{index:02d}" * 4000) for index in range(40)]
    items = [{"role": "system", "content": "keep me"}, *long, user("the last")]
    await respond(harness, items, truncation="auto")
    assert "keep me" in prompt_of(harness)
    assert "the last" in prompt_of(harness)
    assert max(lengths) < 512 * 64 + 4000
    huge = {"model": BASE, "input": [*long, user("x" * 100_000)], "truncation": "auto"}
    lengths.clear()
    refused = await harness.post(PATH, huge)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert len(lengths) == 1


async def test_metrics_count_what_is_kept(harness: Harness) -> None:
    await respond(harness)
    await respond(harness, store=False)
    text = (await harness.client.get("/metrics")).text
    assert 'branchline:responses_kept_total{model_name="base"} 1.0' in text
    assert 'branchline:responses_held{model_name="base"} 1.0' in text
