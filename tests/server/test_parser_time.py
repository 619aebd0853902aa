"""Parsers of answers take time that grows with the text, not with its square."""

from __future__ import annotations

import time

import pytest
from output_parts import Parsed, parse, parse_pieces

from branchline.server.output.held import MarkSearch
from branchline.server.output.text_gate import TextGate

from .test_tools_parsers import CALL, HERMES, JSON, MISTRAL, F, of, thinking, xml

NUM_LETTERS = 250_000
MAX_SECONDS = 4.0  # it takes half of one, and took over ten where every letter copied all before

HELD = {
    "before thoughts": (thinking(False), "", " "),
    "before thoughts that are open": (thinking(True), "", "\n"),
    "in thoughts": (thinking(True), "a", " "),
    "behind thoughts": (thinking(True), "a</think>", " "),
    "before the first call": (of(JSON), "", " "),
    "before an object": (of(HERMES), "<tool_call>", "\n"),
    "before a list": (of(MISTRAL), "[TOOL_CALLS][", " "),
    "in an object": (of(HERMES), "<tool_call>{", " "),
    "in an id": (of(HERMES), '<tool_call>{"id": "', "x"),
    "behind a call": (of(HERMES), f"<tool_call>{CALL}", " "),
    "in content": (of(HERMES), "a", " "),
    "before a function": (xml, "<tool_call>", "\n"),
    "in a function": (xml, "<function=f>", "\n"),
    "in a value": (xml, "<function=f><parameter=a>", "x"),
    "behind a function": (xml, "<function=f></function>", " "),
}


@pytest.mark.parametrize("name", HELD)
def test_a_long_run_letter_by_letter(name: str) -> None:
    new_parser, front, letter = HELD[name]
    parser, end = new_parser(), time.process_time() + MAX_SECONDS
    parser.push(front)
    for _ in range(NUM_LETTERS // 1000):
        for _ in range(1000):
            parser.push(letter)
        assert time.process_time() < end
    parser.finish()


@pytest.mark.parametrize("name", HELD)
def test_a_long_run_in_one_piece(name: str) -> None:
    new_parser, front, letter = HELD[name]
    parser, end = new_parser(), time.process_time() + MAX_SECONDS
    parser.push(front + letter * NUM_LETTERS * 2)
    parser.finish()
    assert time.process_time() < end


def test_blanks_in_front_are_kept_for_content_only() -> None:
    blanks = " \n" * 50
    assert parse_pieces(thinking(False), list(f"{blanks}x"))[-1] == Parsed(f"{blanks}x")
    assert parse(thinking(False), f"{blanks}<think>x</think>{blanks}y") == Parsed("y", "x")
    assert parse(of(HERMES), f"a{blanks}<tool_call>{blanks}{CALL}") == Parsed("a", calls=[F])
    assert parse(of(JSON), f"{blanks}[1]") == Parsed(f"{blanks}[1]")


@pytest.mark.parametrize("key", ["x:", "name:", "{"])
def test_a_cut_in_a_key_decides_nothing(key: str) -> None:
    text = f'<tool_call>{{"{key}'
    assert parse_pieces(of(HERMES), [text])[0] == Parsed()


def test_marks_are_found_over_cuts_and_only_once() -> None:
    text = "<<a<b>>x<ab><b"
    for cut in range(len(text) + 1):
        search = MarkSearch(("<b>", "<ab>"))
        given, marks = "", []
        for piece in (text[:cut], text[cut:]):
            place = 0
            while place < len(piece):
                before, mark, place = search.push(piece, place)
                given += before
                marks += [mark] if mark else []
        assert (given, marks, search.drop()) == ("<<a>x", ["<b>", "<ab>"], "<b")


def test_no_marks_hold_nothing_but_blanks_back() -> None:
    gate = TextGate(())
    assert gate.push("a ", 0) == ("a", None, 2)
    assert gate.push("b", 0) == (" b", None, 1)
    assert gate.flush() == ""
