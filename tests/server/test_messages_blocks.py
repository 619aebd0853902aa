"""Parts of an answer as content blocks, whole and streamed, and streams that go on elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.gateway.fleet.resume import ResumedChoice
from branchline.server.answer import Answer, ChoiceText
from branchline.server.catalog import ServedModel
from branchline.server.generation import ChoiceDelta, ChoiceRequest
from branchline.server.messages.blocks import Blocks, Closed, tool_use_id
from branchline.server.messages.blocks import Opened as OpenedBlock
from branchline.server.messages.wire import AnswerThinking, AnswerToolUse
from branchline.server.messages.writer import MessagesWriter
from branchline.server.output.parts import (
    ContentText,
    OutputPart,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
)
from branchline.server.prompt import Prompt
from branchline.server.text.detokenizer import TextDelta
from branchline.server.wire import encode, make_usage

TEXT = "R12C\nCab T3{}CC W"
"""``R`` and ``C``: a character of reasoning or content; ``T``: a call whose arguments follow."""


class LetterParser:
    """Reads the letters of ``TEXT``; holds back one character."""

    def __init__(self) -> None:
        self._held, self._mode, self._num_calls = "", "C", 0

    def push(self, text: str) -> list[OutputPart]:
        self._held += text
        ready, self._held = self._held[:-1], self._held[-1:]
        return [part for letter in ready for part in self._part(letter)]

    def finish(self) -> list[OutputPart]:
        ready, self._held = self._held, ""
        return [part for letter in ready for part in self._part(letter)]

    def _part(self, letter: str) -> list[OutputPart]:
        if letter in "RCT":
            self._mode = letter
            if letter == "T":
                self._num_calls += 1
                return [ToolCallBegin(self._num_calls - 1, "look")]
            return []
        if self._mode == "T":
            return [ToolCallArguments(self._num_calls - 1, letter)]
        return [ReasoningText(letter) if self._mode == "R" else ContentText(letter)]


class Opened:
    """Stands in for a ``ChatAnswer``."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def parser(self, choice_index: int) -> LetterParser:
        return LetterParser()


def choice() -> ChoiceRequest:
    params = SamplingParams(max_tokens=50, seed=1)
    request = GenerationRequest(request_id="r", prompt_token_ids=[1, 2, 3, 4], params=params)
    return ChoiceRequest(0, 0, request)


def writer(**options: Any) -> MessagesWriter:
    answer = Answer(
        id="msg_1",
        created=1,
        model=ServedModel("base", "/"),
        model_name="base",
        prompts=[Prompt([1, 2, 3, 4], None)],
        choices=[choice()],
        num_logprobs=None,
        return_token_ids=False,
        include_usage=False,
        continuous_usage=False,
    )
    return MessagesWriter(Opened(answer), 50, **options)  # type: ignore[arg-type]


def deltas(text: str = TEXT, stop_reason: str | int | None = None) -> list[TextDelta]:
    """A token a character."""
    ends = [None] * (len(text) - 1) + ["stop"]
    return [
        TextDelta(
            text=letter,
            token_ids=[ord(letter)],
            logprobs=None,
            finish_reason=end,  # type: ignore[arg-type]
            stop_reason=stop_reason if end else None,
            num_cached_tokens=3,
        )
        for letter, end in zip(text, ends, strict=True)
    ]


def events(raw: bytes) -> list[dict[str, Any]]:
    parts = [part.split(b"\n") for part in raw.split(b"\n\n") if part]
    assert all(name == b"event: " + json.loads(data[6:])["type"].encode() for name, data in parts)
    return [json.loads(data[6:]) for _, data in parts]


def streamed(over: MessagesWriter, items: list[TextDelta]) -> bytes:
    out = [over.chunk(ChoiceDelta(choice(), delta), None) for delta in items]
    return b"".join(out) + over.closing(make_usage(4, len(TEXT), 3))


EXPECTED = [
    {"type": "thinking", "thinking": "12"},
    {"type": "text", "text": "\nab ", "citations": None},
    {"type": "tool_use", "id": tool_use_id("msg_1", 0), "name": "look", "input": {}},
    {"type": "text", "text": " W", "citations": None},
]


def folded(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a stream's events build, as a client does."""
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in found:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            assert event["index"] == len(blocks) - 1, "one is open at a time"
            match delta["type"]:
                case "text_delta":
                    block["text"] += delta["text"]
                case "thinking_delta":
                    block["thinking"] += delta["thinking"]
                case "signature_delta":
                    block["signature"] = delta["signature"]
                case "input_json_delta":
                    index = event["index"]
                    inputs[index] = inputs.get(index, "") + delta["partial_json"]
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text[text.index("{") :])
    return blocks


def test_whole_and_streamed_are_the_same_blocks() -> None:
    finished = ChoiceText(text=list(TEXT))
    whole = json.loads(encode(writer().whole([finished], make_usage(4, 9, 3))))
    assert (whole["stop_reason"], whole["usage"]["input_tokens"]) == ("tool_use", 1)
    found = events(streamed(writer(), deltas()))
    blocks = folded(found)
    assert [block.pop("signature") for block in blocks if "signature" in block] == [
        block.pop("signature") for block in whole["content"] if "signature" in block
    ]
    assert blocks[0] == EXPECTED[0]
    whole["content"][2]["input"] = blocks[2]["input"] = {}
    assert blocks == whole["content"] == EXPECTED
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"] == whole["usage"] | {"output_tokens": len(TEXT)}


@pytest.mark.parametrize("num_sent", range(len(TEXT) + 1))
def test_a_stream_goes_on_as_if_never_cut(num_sent: int) -> None:
    uncut = writer()
    pieces = [uncut.chunk(ChoiceDelta(choice(), delta), None) for delta in deltas()]
    end = uncut.closing(make_usage(4, len(TEXT), 3))
    resumed = writer()
    if num_sent:
        finish = "stop" if num_sent == len(TEXT) else None
        sent = ResumedChoice(0, list(range(num_sent)), num_sent, finish)
        resumed.resume(resumed.answer, [sent], {0: TEXT[:num_sent]})
    rest = [resumed.chunk(ChoiceDelta(choice(), delta), None) for delta in deltas()[num_sent:]]
    assert rest == pieces[num_sent:]
    assert resumed.closing(make_usage(4, len(TEXT), 3)) == end


def test_thinking_can_be_left_out() -> None:
    blocks = folded(events(streamed(writer(shows_thinking=False), deltas("Rab" + "Cx"))))
    assert [block.get("thinking", block.get("text")) for block in blocks] == ["", "x"]
    assert blocks[0]["signature"]


@pytest.mark.parametrize(
    ("finish", "stop", "max_tokens", "expected"),
    [
        ("stop", None, 50, ("end_turn", None)),
        ("stop", 17, 50, ("end_turn", None)),
        ("stop", "END", 50, ("stop_sequence", "END")),
        ("length", None, 50, ("max_tokens", None)),
        ("length", None, 60, ("model_context_window_exceeded", None)),
    ],
)
def test_stop_reasons(finish: str, stop: Any, max_tokens: int, expected: Any) -> None:
    over = MessagesWriter(Opened(writer().answer), max_tokens)  # type: ignore[arg-type]
    finished = ChoiceText(text=["Cab"], finish_reason=finish, stop_reason=stop)
    message = over.whole([finished], make_usage(4, 3, 0))
    assert (message.stop_reason, message.stop_sequence) == expected


def test_an_answer_of_nothing_has_no_blocks() -> None:
    blocks = Blocks("a")
    assert blocks.take([ContentText(" "), ContentText("\n")]) == []
    assert blocks.close() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ("[1]", {}),
        ("nonsense", {}),
        ('{"a": NaN}', {}),
    ],
)
def test_a_tools_input(arguments: str, expected: Any) -> None:
    blocks = Blocks("a")
    blocks.take([ToolCallBegin(0, "f"), ToolCallArguments(0, arguments)])
    [closed] = blocks.close()
    assert isinstance(closed, Closed)
    assert closed.block == AnswerToolUse(tool_use_id("a", 0), "f", expected)


def test_signatures_differ_and_stay() -> None:
    def signatures() -> list[str]:
        blocks = Blocks("a")
        changes = blocks.take([ReasoningText("x"), ContentText("y"), ReasoningText("z")])
        opened = [change.block for change in changes if isinstance(change, OpenedBlock)]
        return [block.signature for block in opened if isinstance(block, AnswerThinking)]

    first = signatures()
    assert first == signatures()
    assert len(set(first)) == 2
