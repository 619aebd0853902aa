from __future__ import annotations

import math

import msgspec

from branchline.engine.types import TokenLogprobs
from branchline.server.logprobs import TextOffsets, chat_logprobs, completion_logprobs
from branchline.server.text.detokenizer import TextStream
from branchline.server.text.tokenizer import Tokenizer

EURO = list("€".encode())
POSITIONS = [
    TokenLogprobs(97, -0.5, 1, [97, 98], [-0.5, -1.5]),
    TokenLogprobs(EURO[0], -math.inf, 9, [98, 97], [-0.1, -math.inf]),
    TokenLogprobs(EURO[1], -2.0, 3, [99, 100], [-1.0, -1.5]),
]

IDS = [position.token_id for position in POSITIONS]


def test_chats_get_bytes_and_finite_numbers(tokenizer: Tokenizer) -> None:
    shaped = msgspec.to_builtins(chat_logprobs(tokenizer, POSITIONS, 2))
    first, second, third = shaped["content"]
    assert first["token"] == "a"
    assert [top["token"] for top in first["top_logprobs"]] == ["a", "b"]
    assert second["bytes"] == [EURO[0]]
    assert second["logprob"] == -9999.0
    assert second["top_logprobs"][1]["logprob"] == -9999.0
    assert second["bytes"] + third["bytes"] == EURO[:2]


def test_top_logprobs_can_be_none(tokenizer: Tokenizer) -> None:
    shaped = chat_logprobs(tokenizer, POSITIONS, 0)
    assert all(entry.top_logprobs == [] for entry in shaped.content)
    assert completion_logprobs(tokenizer, IDS, POSITIONS, 0, [0, 1, 1]).top_logprobs is None


def test_text_gets_the_chosen_token_beside_the_top(tokenizer: Tokenizer) -> None:
    offsets = TextOffsets(TextStream(tokenizer, [], skip_special_tokens=True), 10).take(IDS)
    shaped = completion_logprobs(tokenizer, IDS, POSITIONS, 2, offsets)
    assert shaped.text_offset == [10, 11, 11], "one character in two tokens"
    assert shaped.top_logprobs is not None
    assert shaped.top_logprobs[0] == {"a": -0.5, "b": -1.5}
    assert shaped.top_logprobs[2] == {"c": -1.0, "d": -1.5, "�": -2.0}
    assert shaped.token_logprobs == [-0.5, -9999.0, -2.0]
