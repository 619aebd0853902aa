"""Streams of thoughts and calls, cut behind any event and resumed: the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tool_templates
from cut_streams import Group
from fake_engine import FakeEngine, say

from branchline.server.catalog import ServedModel
from branchline.server.text.tokenizer import Tokenizer

from .fleet_replica import CHAT, END, Replica, body_of

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>'
TEXTS = {
    "calls": f"Wait. {CALL}\n{CALL}",
    "thoughts": f"<think>\nhm, hm\n</think>\n\nSo:\n{CALL}",
    "a broken call": '<tool_call>\n{"name": "f", "arguments": {"a": oops}} <tool_ca',
    "no call": "Just <b>text</b>.\n",
}


def replica_of(tokenizer: Tokenizer, text: str) -> Replica:
    replica = Replica(tokenizer, FakeEngine(say(text)))
    model = ServedModel("m", "/adapters/m", "digest-m", tool_templates.QWEN3, version=1)
    replica.services.catalog.put("m", {1: model}, 1)
    return replica


def events_of(groups: Sequence[Group]) -> bytes:
    return b"".join(event for group in groups for event in group.events)


@pytest.mark.parametrize("case", TEXTS)
async def test_a_cut_anywhere_changes_no_byte(tokenizer: Tokenizer, case: str) -> None:
    body = body_of(CHAT, model="m", tools=[TOOL], n=2, logprobs=True)
    here, there = (replica_of(tokenizer, TEXTS[case]) for _ in range(2))
    whole = await here.stream(CHAT, body)
    for cut in range(1, len(whole) + 1):
        rest = await there.resume(CHAT, body, whole[:cut])
        assert sorted_events([*whole[:cut], *rest]) == sorted_events(whole)


def sorted_events(groups: Sequence[Group]) -> list[list[bytes]]:
    """The events of each choice in their order; which choice speaks first is chance."""
    events: list[list[bytes]] = [[], []]
    for group in groups:
        for event in group.events:
            [choice] = json.loads(event.removeprefix(b"data: "))["choices"]
            events[choice["index"]].append(event)
    return events


async def test_another_way_of_reading_is_another_answer(tokenizer: Tokenizer) -> None:
    body = body_of(CHAT, model="m", tools=[TOOL])
    plain = body_of(CHAT, model="m")
    replica = replica_of(tokenizer, TEXTS["calls"])
    whole = await replica.stream(CHAT, body)
    assert whole[0].comment is not None
    other = await replica.stream(CHAT, plain)
    assert other[0].comment is not None
    assert whole[0].comment.opening is not None
    assert other[0].comment.opening is not None
    assert whole[0].comment.opening.fingerprint != other[0].comment.opening.fingerprint


def unmarked(directory: Path, copy: Path) -> Tokenizer:
    """The tokenizer, but that its end token is one like any other."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text())
    for token in vocabulary["added_tokens"]:
        token["special"] = token["special"] and token["id"] != END
    (copy / "tokenizer.json").write_text(json.dumps(vocabulary))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_directory(str(copy))


@pytest.mark.parametrize("text", ["No call.", CALL])
@pytest.mark.parametrize("is_single", [True, False])
async def test_an_end_token_that_is_not_marked_special(
    tokenizer_dir: Path, tmp_path: Path, text: str, is_single: bool
) -> None:
    """Of one choice the token that it stopped with is text, of another it is none."""
    plain = unmarked(tokenizer_dir, tmp_path)
    assert not plain.is_special(END)
    body = body_of(CHAT, model="m", tools=[TOOL], parallel_tool_calls=not is_single)
    here, there = (replica_of(plain, text) for _ in range(2))
    whole = await here.stream(CHAT, body)
    for cut in range(1, len(whole) + 1):
        rest = await there.resume(CHAT, body, whole[:cut])
        assert [e for g in [*whole[:cut], *rest] for e in g.events] == [
            e for g in whole for e in g.events
        ]
