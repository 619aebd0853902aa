from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from branchline.engine.types import FinishReason, SamplingParams, TokenOutput
from branchline.server.text.detokenizer import Detokenizer, TextStream
from branchline.server.text.tokenizer import Tokenizer, TokenizerError

END, IM_START = 258, 257


def make_sentencepiece() -> Tokenizer:
    """Like Llama 2's: a space is ▁, unknown characters fall back to bytes, the first space goes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁he", "llo", "▁wor", "ld", "e", "h", "l", "o", "▁a"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = RustTokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


SENTENCEPIECE = make_sentencepiece()


def stream(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    text = TextStream(tokenizer, prompt or [], skip_special_tokens=True)
    return [*(text.push(token_id) for token_id in ids), text.flush()]


@given(text=st.text(max_size=20))
def test_every_text_comes_back_whole(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text


@given(ids=st.lists(st.integers(0, 259), max_size=40))
def test_any_tokens_give_what_decoding_them_at_once_gives(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(stream(tokenizer, ids)) == expected


@given(ids=st.lists(st.integers(3, 268), max_size=30), prompt=st.lists(st.integers(3, 268)))
def test_no_tokens_break_a_decoder_with_byte_fallback(ids: list[int], prompt: list[int]) -> None:
    assert isinstance("".join(stream(SENTENCEPIECE, ids, prompt)), str)


def test_a_character_comes_when_its_last_byte_is_there(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, list("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    assert "".join(stream(tokenizer, list("a😀".encode())[:3])) == "a�"


def test_a_leading_space_belongs_to_the_answer() -> None:
    prompt = SENTENCEPIECE.backend.encode("h").ids
    ids = [SENTENCEPIECE.backend.token_to_id(piece) for piece in ("▁he", "llo", "▁wor", "ld")]
    assert "".join(stream(SENTENCEPIECE, ids, prompt)) == " hello world"
    assert "".join(stream(SENTENCEPIECE, ids)) == "hello world", "nothing before: it is stripped"


def test_a_prompt_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    prompt = list("é".encode())
    assert "".join(stream(tokenizer, list(b"xyz"), prompt[:1])) == "xyz"


@pytest.mark.parametrize("token", ["▁he", "<0xE2>", "</s>"])
def test_token_bytes_of_sentencepiece(token: str) -> None:
    expected = {"▁he": b" he", "<0xE2>": b"\xe2", "</s>": b"</s>"}[token]
    assert SENTENCEPIECE.token_bytes(SENTENCEPIECE.backend.token_to_id(token)) == expected


def test_token_bytes_of_byte_level(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_bytes(byte) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert tokenizer.token_bytes(END) == b"<|im_end|>"
    assert tokenizer.token_bytes(100_000) == b"", "models are padded with ids of no token"


def output(
    *ids: int, finish: FinishReason | None = None, stop_token_id: int | None = None
) -> TokenOutput:
    return TokenOutput(
        request_id="r", token_ids=list(ids), finish_reason=finish, stop_token_id=stop_token_id
    )


def test_the_end_token_is_not_part_of_the_text(tokenizer: Tokenizer) -> None:
    params = SamplingParams(skip_special_tokens=False)
    delta = Detokenizer(tokenizer, [], params).push(output(97, END, finish="stop"))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("a", [97, END], "stop")
    params = SamplingParams(skip_special_tokens=False, include_stop_str_in_output=True)
    delta = Detokenizer(tokenizer, [], params).push(output(97, END, finish="stop"))
    assert delta.text == "a<|im_end|>"


def test_a_stop_token_is_named(tokenizer: Tokenizer) -> None:
    params = SamplingParams(stop_token_ids=(98,))
    delta = Detokenizer(tokenizer, [], params).push(output(98, finish="stop", stop_token_id=98))
    assert (delta.text, delta.stop_reason) == ("", 98)


def test_a_stop_string_ends_in_the_middle_of_an_output(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=("bc",)))
    first = detokenizer.push(output(97, 98))
    assert (first.text, first.finish_reason) == ("a", None)
    delta = detokenizer.push(output(99, 100, 101))
    assert (delta.text, delta.token_ids) == ("", [99])
    assert (delta.finish_reason, delta.stop_reason) == ("stop", "bc")
    assert detokenizer.finished


def test_held_text_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=("bc",)))
    detokenizer.push(output(97, 98))
    assert detokenizer.push(output(98, finish="length")).text == "bb"


def test_a_stop_string_of_many_bytes_over_tokens(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=("é😀",)))
    deltas = [detokenizer.push(output(byte)) for byte in "aé😀z".encode()]
    assert [delta.text for delta in deltas][:1] == ["a"]
    stopped = [delta for delta in deltas if delta.finish_reason]
    assert stopped[0].stop_reason == "é😀"
    assert "".join(delta.text for delta in deltas[: deltas.index(stopped[0]) + 1]) == "a"


@pytest.mark.parametrize(("min_tokens", "num_tokens"), [(0, 2), (2, 2), (3, 4), (4, 4)])
def test_min_tokens_counts_the_token_that_completes(
    tokenizer: Tokenizer, min_tokens: int, num_tokens: int
) -> None:
    params = SamplingParams(stop=("ab",), min_tokens=min_tokens)
    detokenizer = Detokenizer(tokenizer, [], params)
    taken = 0
    for byte in b"abab":
        taken += len(detokenizer.push(output(byte)).token_ids)
        if detokenizer.finished:
            break
    assert taken == num_tokens


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_does_not_load_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
        config = '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_directory(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@given(
    ids=st.lists(st.integers(3, 268), min_size=1, max_size=24),
    cut=st.integers(0, 23),
    prompt=st.lists(st.integers(3, 268), max_size=6),
    stop=st.lists(st.sampled_from(["he", "llo w", " a", "\ufffd", "e"]), max_size=2),
    min_tokens=st.integers(0, 8),
)
def test_what_follows_a_replay_is_what_would_have_followed(
    ids: list[int], cut: int, prompt: list[int], stop: list[str], min_tokens: int
) -> None:
    params = SamplingParams(stop=tuple(stop), min_tokens=min_tokens)
    whole, resumed = (Detokenizer(SENTENCEPIECE, prompt, params) for _ in range(2))
    outputs = [TokenOutput(request_id="", token_ids=[token_id]) for token_id in ids]
    last = TokenOutput(request_id="", token_ids=[0], finish_reason="length")
    before = [whole.push(output) for output in outputs[: cut % len(ids)]]
    if whole.finished:
        return
    assert resumed.replay(ids[: len(before)]) == "".join(delta.text for delta in before)
    for output in [*outputs[len(before) :], last]:
        assert resumed.push(output) == whole.push(output)
        assert resumed.finished == whole.finished
        if whole.finished:
            break


def test_a_replay_with_a_stop_string_is_finished() -> None:
    detokenizer = Detokenizer(SENTENCEPIECE, [], SamplingParams(stop=("llo",)))
    pieces = ("▁he", "llo", "▁wor")
    detokenizer.replay([SENTENCEPIECE.backend.token_to_id(piece) for piece in pieces])
    assert detokenizer.finished


def test_special_tokens_that_a_parser_needs_are_shown(tokenizer: Tokenizer) -> None:
    mark, other = 257, 256
    ids = [*"aé".encode(), mark, *"é".encode(), other, ord("b")]
    for skip, shown in ((True, "aé<|im_start|>éb"), (False, "aé<|im_start|>é<|endoftext|>b")):
        params = SamplingParams(skip_special_tokens=skip)
        detokenizer = Detokenizer(tokenizer, [], params, frozenset({mark}))
        text = "".join(
            detokenizer.push(TokenOutput(request_id="", token_ids=[token_id])).text
            for token_id in ids
        )
        assert text == shown
    assert tokenizer.special_ids_of(["<|im_start|>", "a", "<|nothing|>"]) == {mark}
