"""Streams of every endpoint, read as their clients read them, however they were cut into events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

# What differs from one answer to the next, whatever it says.
_IDS = re.compile(r"\b(chatcmpl|cmpl|resp|msg|fc|rs|call|toolu|ctc|item)[-_][0-9A-Za-z_]{8,}")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def events_of(body: str) -> list[dict[str, Any]]:
    """The JSON of each event; checks that names and ends are as they have to be."""
    blocks = [block for block in body.split("\n\n") if block]
    events = []
    for block in blocks:
        name, _, data = block.rpartition("data: ")
        if data == "[DONE]":
            assert block is blocks[-1]
            continue
        event = json.loads(data)
        if name:
            assert name == f"event: {event['type']}\n", block
        events.append(event)
    return events


def said(path: str, body: str) -> Any:
    """What a stream says in the end; raises AssertionError where it is not a sound one."""
    if path == RESPONSES:
        assert "[DONE]" not in body
        return _response(events_of(body))
    if path == MESSAGES:
        assert "[DONE]" not in body
        return _message(events_of(body))
    assert body.endswith("data: [DONE]\n\n")
    return _choices(events_of(body))


def _choices(events: Iterable[dict[str, Any]]) -> dict[int, Any]:
    choices: dict[int, Any] = {}
    ids = set()
    for event in events:
        assert "error" not in event, event
        ids.add(event["id"])
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "calls": {}})
            assert "finish_reason" not in choice, "something came behind the end"
            delta = part.get("delta", {"content": part.get("text")})
            choice["text"] += delta.get("content") or ""
            for name in ("reasoning_content", "reasoning"):
                if delta.get(name):
                    choice[name] = choice.get(name, "") + delta[name]
            for call in delta.get("tool_calls") or ():
                _add_call(choice["calls"], call)
            if part["finish_reason"] is not None:
                choice["finish_reason"] = part["finish_reason"]
    assert len(ids) == 1
    return choices


def _add_call(calls: dict[int, Any], call: dict[str, Any]) -> None:
    function = call["function"]
    if call["index"] not in calls:
        assert call["id"]
        calls[call["index"]] = {"name": function["name"], "arguments": ""}
    else:
        assert not call.get("id"), "a call began twice"
    calls[call["index"]]["arguments"] += function.get("arguments") or ""


def _response(events: list[dict[str, Any]]) -> Any:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    texts: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["type"], event["output_index"])
            texts[key] = texts.get(key, "") + event["delta"]
    final = events[-1]["response"]
    output = json.loads(_IDS.sub(r"\1", json.dumps(final["output"])))
    return [final["status"], output, sorted(texts.items())]


def _message(events: list[dict[str, Any]]) -> Any:
    events = [event for event in events if event["type"] != "ping"]
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events[1:-2]:
        kind = event["type"]
        if kind == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            is_open = True
            blocks.append({"type": event["content_block"]["type"], "said": ""})
            if "name" in event["content_block"]:
                blocks[-1]["name"] = event["content_block"]["name"]
        elif kind == "content_block_stop":
            assert is_open
            is_open = False
        else:
            assert kind == "content_block_delta", event
            assert is_open
            assert event["index"] == len(blocks) - 1
            delta = event["delta"]
            for name in ("text", "thinking", "partial_json"):
                blocks[-1]["said"] += delta.get(name, "")
    assert not is_open
    last = events[-2]
    return [blocks, last["delta"], last["usage"]["output_tokens"]]
