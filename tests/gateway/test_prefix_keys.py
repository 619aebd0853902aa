"""Prefix keys: equal beginnings, unequal everything else, and bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway import prefix_keys
from branchline.gateway.endpoints import ENDPOINTS
from branchline.gateway.prefix_keys import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    PrefixHasher,
    PrefixNamespace,
    chat_text,
    prompt_text,
    request_text,
    request_variant,
    token_text,
)

HASHER = PrefixHasher(b"s" * 32)
BASE = PrefixNamespace()

texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
messages = st.builds(
    lambda role, content, name: (
        {"role": role, "content": content} | ({} if name is None else {"name": name})
    ),
    st.sampled_from(["system", "user", "assistant", ""]) | texts,
    texts,
    st.none() | texts,
)
chats = st.lists(messages, max_size=5)
requests = st.one_of(
    chats.filter(bool).map(lambda chat: (chat, None)),
    texts.map(lambda text: (None, text)),
    st.lists(st.integers(0, 2**32 - 1), min_size=1).map(lambda ids: (None, ids)),
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@given(chats, chats)
def test_a_conversation_begins_with_its_earlier_turns(first: Any, more: Any) -> None:
    long = [{**message, "content": message["content"] * 9} for message in [*first, *more]]
    short = long[: len(first)]
    assert chat_text(long).startswith(chat_text(short))
    keys = HASHER.keys(BASE, chat_text(short))
    assert HASHER.keys(BASE, chat_text(long))[: len(keys)] == keys


@given(requests, requests)
def test_no_two_requests_have_one_text(one: Any, other: Any) -> None:
    """However they are made up: no content forges a message, no ids a text."""
    assert (request_text(*one) == request_text(*other)) == (one == other)


@given(st.lists(st.tuples(texts, st.sampled_from([b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb"]))))
def test_no_content_holds_a_boundary(parts: Any) -> None:
    for text, boundary in parts:
        assert boundary not in prompt_text(text)[1:]
    assert b"\xff" not in chat_text([user("\udfff\ud800 \U0010ffff")])[1:]


def test_parts_are_joined_as_templates_see_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat_text([user(parts)]) == chat_text([user("ab")]) == b"\xffuser\xfdab"
    assert chat_text([user(None)]) == chat_text([{"role": "user"}]) == chat_text([user("")])
    assert chat_text([user("a"), user("b")]) != chat_text([user("ab")])


@pytest.mark.parametrize(
    "bad",
    [
        *[7, "text", {}, {"role": 3}, {"role": "user", "name": 4, "content": "x"}],
        *[user(7), user([{"type": "image_url"}]), user([3])],
    ],
)
def test_a_message_that_no_replica_takes_ends_the_text(bad: Any) -> None:
    assert request_text([user("a"), bad, user("b")], None) == chat_text([user("a")])


@pytest.mark.parametrize("prompt", [None, 3, {}, [], [[]], [None], [-1], [2**32]])
def test_a_prompt_that_no_replica_takes_has_no_text(prompt: object) -> None:
    assert request_text(None, prompt) == b""


def test_of_several_prompts_it_is_the_first():
    assert request_text(None, ["a", "b"]) == prompt_text("a")
    assert request_text(None, [[1, 2], [3]]) == request_text(None, [1, 2]) == token_text([1, 2])


namespaces = st.builds(
    PrefixNamespace,
    adapter=st.none() | st.text("a1:", max_size=3),
    isolation=st.sampled_from(["none", "tenant", "group"]),
    owner=st.text("a1:", max_size=3),
    salt=st.none() | st.text("a1:", max_size=3),
    variant=st.binary(max_size=2),
)


@given(namespaces, namespaces)
def test_no_two_namespaces_are_one(one: PrefixNamespace, other: PrefixNamespace) -> None:
    text = b"x" * CHUNK_BYTES
    assert (HASHER.keys(one, text) == HASHER.keys(other, text)) == (one == other)


def test_a_field_of_a_namespace_can_not_run_into_the_text():
    frame = BASE.framed()
    tails = {HASHER.chain(BASE).extend(frame + b"x" * CHUNK_BYTES)[0]}
    tails |= {HASHER.keys(PrefixNamespace(variant=frame), b"x" * CHUNK_BYTES)[0]}
    assert len(tails) == 2


def test_another_secret_gives_other_keys():
    text = b"x" * 1000
    assert not set(HASHER.keys(BASE, text)) & set(PrefixHasher(b"t" * 32).keys(BASE, text))


@given(st.lists(st.binary(max_size=700), max_size=6), st.integers(0, 5))
def test_a_chain_grows_as_the_whole_does(pieces: list[bytes], copied: int) -> None:
    chain, keys = HASHER.chain(BASE), list[bytes]()
    for index, piece in enumerate(pieces):
        if index == copied:
            chain, other = chain.copy(), chain
            other.extend(b"?" * 500)
        keys += chain.extend(piece)
    assert keys == HASHER.keys(BASE, b"".join(pieces))
    assert chain.num_bytes == len(keys) * CHUNK_BYTES
    assert len(set(keys)) == len(keys) == sum(map(len, pieces)) // CHUNK_BYTES


def test_only_so_much_is_read_and_hashed():
    huge = "x" * (3 * MAX_CHUNKS * CHUNK_BYTES)
    prompts: list[Any] = [([user(huge)], None), (None, huge), (None, [1] * len(huge))]
    for messages, prompt in prompts:
        assert len(HASHER.keys(BASE, request_text(messages, prompt))) == MAX_CHUNKS
    assert len(chat_text([user(huge[:1000])] * 10_000)) < 1.1 * prefix_keys.MAX_BYTES
    assert len(request_text(None, huge)) <= prefix_keys.MAX_BYTES + 1


def test_variants_are_told_apart():
    variants = [
        request_variant(is_chat=is_chat, add_special_tokens=special, chat_template_kwargs=kwargs)
        for is_chat in (True, False)
        for special in (None, True, False)
        for kwargs in (None, {}, {"a": 1}, {"a": {"b": 2, "c": 3}}, {"a": {"c": 3, "b": 2}})
    ]
    plain = [request_variant(is_chat=True), request_variant(is_chat=False, add_special_tokens=True)]
    assert plain == [b"", b""]
    # Two ways to be special, three sets of variables; without either it is plain.
    assert len(set(variants)) == 2 * 3 + 1
    assert request_variant(is_chat=True, chat_template_kwargs={"a": object()}) != b""


def test_the_keys_are_what_they_were():
    """Replicas and gateways of different releases must agree; a change here is a new protocol."""
    text = chat_text([user("a" * 300)])
    namespace = PrefixNamespace(adapter="d", isolation="group", owner="g", salt="s", variant=b"v")
    assert [key.hex() for key in HASHER.keys(BASE, text) + HASHER.keys(namespace, text)] == [
        "fcf579da3f241aebd64512a6ca9d5ff1",
        "8da9aeaf1817dc6e505b26cdae12af41",
    ]


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_calls_and_results_are_in_a_chats_text():
    asked = [user("weather?")]
    called = [
        *asked,
        {"role": "assistant", "content": None, "tool_calls": [call("get", '{"a": 1}')]},
    ]
    answered = [*called, {"role": "tool", "tool_call_id": "c", "content": "rain"}]
    texts = [chat_text(asked), chat_text(called), chat_text(answered)]
    assert texts[1] == texts[0] + b"\xffassistant\xfd\xfaget\xf9" + b'{"a": 1}'
    assert texts[2] == texts[1] + b"\xfftool\xfdrain"
    others = [
        [call("ge", 't{"a": 1}')],
        [call("get", '{"a": 2}')],
        [call("get", '{"a": 1}'), call("get", "{}")],
    ]
    for calls in others:
        assert chat_text([*asked, {**called[1], "tool_calls": calls}]) != texts[1]


@pytest.mark.parametrize(
    "calls", [5, [5], [{"function": 5}], [call("a", {"b": 1})], [{"function": {"name": "a"}}]]
)
def test_what_is_no_call_ends_the_text(calls: object) -> None:
    odd = {"role": "assistant", "content": "x", "tool_calls": calls}
    text = chat_text([user("a"), odd, user("b")])
    assert text == chat_text([user("a"), {"role": "assistant", "content": "x"}])


SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}


def tool(name: str = "get", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def test_tools_are_told_apart_by_what_a_prompt_shows_of_them():
    same = [
        [tool(parameters=SCHEMA)],
        [tool(parameters=SCHEMA, description=None, strict=None)],
        [tool(parameters=dict(reversed(SCHEMA.items())), description="")],
    ]
    assert len({request_variant(is_chat=True, tools=tools) for tools in same}) == 1
    others: list[Any] = [
        same[0],
        [tool("set", parameters=SCHEMA)],
        [tool(parameters=SCHEMA, description="d")],
        [tool()],
        [tool(), tool()],
        [5],
    ]
    variants = {request_variant(is_chat=True, tools=tools) for tools in others}
    variants |= {request_variant(is_chat=True, reasoning_effort=e) for e in ("low", "high")}
    variants.add(request_variant(is_chat=True, tools=same[0], reasoning_effort="low"))
    assert len(variants) == len(others) + 3
    assert b"" not in variants
    assert request_variant(is_chat=True, tools=[]) == b""
    assert request_variant(is_chat=True, tools=same[0], tool_choice="none") == b""


TOOLS_OF: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"tools": [tool(description="d", parameters=SCHEMA)]},
    "/v1/responses": {
        "tools": [{"type": "function", "name": "get", "description": "d", "parameters": SCHEMA}]
    },
    "/v1/messages": {"tools": [{"name": "get", "description": "d", "input_schema": SCHEMA}]},
}
TURN_OF: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("weather?"),
            {"role": "assistant", "content": "so", "tool_calls": [call("get", '{"a": 1}')]},
            {"role": "tool", "tool_call_id": "c", "content": "rain"},
        ]
    },
    "/v1/responses": {
        "instructions": "Be brief.",
        "input": [
            user("weather?"),
            {"type": "message", "role": "assistant", "content": "so"},
            {"type": "function_call", "call_id": "c", "name": "get", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ],
    },
    "/v1/messages": {
        "system": "Be brief.",
        "messages": [
            user("weather?"),
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "so"},
                    {"type": "tool_use", "id": "c", "name": "get", "input": {"a": 1}},
                ],
            },
            user([{"type": "tool_result", "tool_use_id": "c", "content": "rain"}]),
        ],
    },
}


def test_one_conversation_has_one_text_at_each_endpoint():
    found = set()
    for path, turn in TURN_OF.items():
        request = ENDPOINTS[path].parse(msgspec.json.encode({**turn, **TOOLS_OF[path]}))
        text = request_text(request.messages, request.prompt)
        found.add((text, request_variant(is_chat=True, tools=request.tools)))
    assert len(found) == 1
    text, variant = found.pop()
    assert text == chat_text(TURN_OF["/v1/chat/completions"]["messages"])
    assert variant


def test_a_refusal_is_an_assistants_text() -> None:
    said = {"role": "assistant", "content": "no"}
    for refused in ({"refusal": "no"}, {"content": None, "refusal": "no"}):
        assert chat_text([{"role": "assistant", **refused}]) == chat_text([said])
    assert chat_text([{**said, "refusal": "never"}]) == chat_text([said])
