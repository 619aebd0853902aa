"""Streams with state comments: what a gateway makes of them, and what a client has in the end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from branchline.gateway.fleet.headers import FLEET_SECRET, RESUME, STREAM_STATE
from branchline.gateway.fleet.resume import (
    COMMENT,
    KEEP_ALIVE,
    ResumedChoice,
    ResumeRecord,
    StreamComment,
)

DONE = b"data: [DONE]\n\n"
EVENT = re.compile(rb"(event: [a-z_.]+\n)?data: \{")
SECRET = "fleet-secret"
STATE_HEADERS = {FLEET_SECRET: SECRET, STREAM_STATE: "1"}


@dataclass(frozen=True)
class Group:
    """A comment and the events that it describes; without a comment one event."""

    comment: StreamComment | None
    events: tuple[bytes, ...]


def split_groups(body: bytes) -> list[Group]:
    """A whole stream's groups, and its closing [DONE] left out; every group is complete."""
    assert body.endswith(DONE)
    return list(read_groups([body]))


def read_groups(pieces: Iterable[bytes]) -> Iterator[Group]:
    """Complete groups of a stream as it comes; the closing [DONE] is left out."""
    rest = _blocks(pieces)
    for block in rest:
        if block.startswith(COMMENT):
            comment = msgspec.json.decode(block[len(COMMENT) :], type=StreamComment)
            events = tuple(next(rest) for _ in range(comment.events))
            assert all(EVENT.match(event) for event in events)
            yield Group(comment, events)
        elif block not in (KEEP_ALIVE, DONE):
            yield Group(None, (block,))


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for piece in pieces:
        *blocks, held = (held + piece).split(b"\n\n")
        yield from (block + b"\n\n" for block in blocks)


def record_of(groups: Iterable[Group]) -> ResumeRecord:
    """What is known after these groups; those of a resumed stream go behind those before it."""
    opening, num_cached, usage_sent = None, None, False
    choices: dict[int, ResumedChoice] = {}
    num_events = 0
    for group in groups:
        num_events += len(group.events)
        comment = group.comment
        assert comment is not None
        opening = opening or comment.opening
        if comment.num_cached_tokens is not None:
            num_cached = comment.num_cached_tokens
        usage_sent |= comment.usage_sent
        for progress in comment.choices:
            new = ResumedChoice(progress.index, [])
            choice = choices.setdefault(progress.index, new)
            choice.token_ids += progress.token_ids
            choice.num_characters = progress.num_characters
            choice.finish_reason = progress.finish_reason
            choice.stop_reason = progress.stop_reason
    assert opening is not None
    return ResumeRecord(opening, list(choices.values()), num_cached, usage_sent, num_events)


def resume_request(record: ResumeRecord, body: bytes) -> tuple[bytes, dict[str, str]]:
    """The body and the headers that ask another replica to go on."""
    encoded = msgspec.json.encode(record)
    return encoded + body, {**STATE_HEADERS, RESUME: str(len(encoded))}


@dataclass
class Choice:
    """One choice as a client reads it; of logprobs each list that the events carry."""

    text: str = ""
    num_roles: int = 0
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[list[int]] = field(default_factory=list)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    ends: list[tuple[str, Any]] = field(default_factory=list)


@dataclass
class Content:
    """All that a client has of a stream, whatever pieces it came in."""

    head: list[dict[str, Any]] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)
    prompt_token_ids: list[list[int]] = field(default_factory=list)
    last_usages: list[Any] = field(default_factory=list)
    running_usage: Any = None
    errors: list[Any] = field(default_factory=list)


def content_of(groups: Sequence[Group]) -> Content:
    """The events of these groups, read as a client would."""
    content = Content()
    for group in groups:
        for event in group.events:
            _read(content, json.loads(event.removeprefix(b"data: ")))
    return content


def check_close(given: object, expected: object, tolerance: float = 1e-4) -> None:
    """Equal but for how sums of floats are rounded."""
    if isinstance(expected, float):
        assert given == pytest.approx(expected, abs=tolerance)
    elif isinstance(expected, dict):
        assert isinstance(given, dict)
        assert list(given) == list(expected)
        for name in expected:
            check_close(given[name], expected[name], tolerance)
    elif isinstance(expected, list):
        assert isinstance(given, list)
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            check_close(one, other, tolerance)
    else:
        assert given == expected


def _read(content: Content, body: dict[str, Any]) -> None:
    if "error" in body:
        content.errors.append(body["error"])
        return
    head = {name: body[name] for name in ("id", "object", "created", "model")}
    if head not in content.head:
        content.head.append(head)
    if "prompt_token_ids" in body:
        content.prompt_token_ids.append(body["prompt_token_ids"])
    if not body["choices"]:
        content.last_usages.append(body["usage"])
        return
    content.running_usage = body.get("usage", "absent")
    for part in body["choices"]:
        _read_choice(content.choices.setdefault(part["index"], Choice()), part)


def _read_choice(choice: Choice, part: dict[str, Any]) -> None:
    assert not choice.ends, "something came behind the end"
    delta = part.get("delta", {})
    choice.text += part.get("text", "") + delta.get("content", "")
    choice.num_roles += "role" in delta
    choice.token_ids += part.get("token_ids", [])
    if "prompt_token_ids" in part:
        choice.prompt_token_ids.append(part["prompt_token_ids"])
    for name, values in (part["logprobs"] or {}).items():
        choice.logprobs.setdefault(name, []).extend(values or [])
    if part["finish_reason"] is not None:
        choice.ends.append((part["finish_reason"], part.get("stop_reason", "absent")))
