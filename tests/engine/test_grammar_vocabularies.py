"""Grammars over vocabularies of their own: added tokens, ends, ids without a token."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from adapter_texts import save_text
from grammar_house import GrammarHouse, json_grammar, make_grammar_model, run_all
from llguidance import LLMatcher
from tiny_adapters import make_adapter

from branchline.engine.config import AdapterSource
from branchline.engine.grammar.cache import RecentlyUsed
from branchline.engine.grammar.compiler import compile_grammar
from branchline.engine.grammar.vocabulary import GrammarTokenizer, Vocabulary
from branchline.engine.types import Grammar
from branchline.server.adapters.text import TextStore
from branchline.server.text.tokenizer import Tokenizer

COLOR = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "<blue>", "green"]}, "n": {"type": "integer"}},
    "required": ["color", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_grammar_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def own(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The base's tokenizer with an end and special tokens of its own."""
    directory = tmp_path_factory.mktemp("own")
    save_text(model, directory, added=["<tool>", "<end>"], eos="<end>")
    text = TextStore(str(model), Tokenizer.from_directory(str(model))).read(directory)
    assert text is not None
    assert text.tokenizer is not None
    return text.tokenizer


def test_base_and_adapters_in_one_batch_keep_to_their_grammars(
    model: Path, own: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sources = tuple(
        AdapterSource(
            digest=f"a{seed}",
            path=str(make_adapter(model, tmp_path_factory.mktemp("adapter"), 8, seed=seed)),
        )
        for seed in range(2)
    )
    house = GrammarHouse.of(model, sources)
    grammar = json_grammar(COLOR)
    own_vocabulary = house.vocabularies.path_of(own)
    [end_id] = own.end_token_ids
    changes = {"stop_token_ids": (end_id,), "vocabulary": own_vocabulary}
    requests = [
        house.request(
            f"{adapter}-{seed}",
            grammar if seed < 3 else None,
            temperature=1.0,
            seed=seed,
            max_tokens=40,
            adapter=adapter,
            **(changes if adapter == "a1" else {}),
        )
        for adapter in (None, "a0", "a1")
        for seed in range(4)
    ]
    together = run_all(house.engine(), requests)
    for request in requests:
        end = together[request.request_id]
        if request.params.grammar is None or end.reason == "length":
            continue
        answer = json.loads(own.decode(end.token_ids, skip_special_tokens=True))
        assert answer["color"] in ("red", "<blue>", "green")
        assert end.reason == "stop"
    alone = house.engine()
    for request in requests:
        assert run_all(alone, [request])[request.request_id] == together[request.request_id]


def test_an_adapters_own_end_ends_it_where_the_grammar_does(model: Path, own: Tokenizer) -> None:
    house = GrammarHouse.of(model)
    [end_id] = own.end_token_ids
    request = house.request(
        "r",
        Grammar("regex", "[0-9]{3}"),
        stop_token_ids=(end_id,),
        logit_bias={end_id: 100.0},
        vocabulary=house.vocabularies.path_of(own),
    )
    end = run_all(house.engine(), [request])["r"]
    assert end.token_ids[-1] == end_id
    assert re.fullmatch("[0-9]{3}", own.decode(end.token_ids, skip_special_tokens=True))


def allowed(matcher: LLMatcher, num_ids: int) -> set[int]:
    mask = matcher.compute_bitmask()
    return {i for i in range(num_ids) if mask[i // 8] >> i % 8 & 1}


def test_only_text_counts() -> None:
    """Of equal bytes, ids without a token, special tokens and tokens that only look special."""
    tokens = [b"a", b"ab", b"", b"<end>", b"<", b"a", b"<tool>", b"b", b"ba"]
    tokenizer = GrammarTokenizer(Vocabulary(tokens, [3]), [6, 40])
    grammar = Grammar("regex", "(a|<end>|<tool>)b?")
    matcher = compile_grammar(grammar, tokenizer)
    assert allowed(matcher, 10) == {0, 1, 4, 5}
    assert matcher.try_consume_tokens([5]) == 1
    assert allowed(matcher, 10) == {7, tokenizer.end_id}
    assert matcher.try_consume_tokens([7]) == 1
    assert allowed(matcher, 10) == {tokenizer.end_id}


_TOKENS = [b"Th", b"The", b"The cat", b' {"', b'{"', b'{"a', b'a"', b'": "', b"cat", b" cat", b"he"]


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Grammar("regex", "The cat/dog"), b"The cat/dog"),
        (Grammar("lark", 'start: "The cat"'), b"The cat"),
        (Grammar("lark", '%llguidance {"allow_initial_skip": true}\nstart: /The cat/'), b"The cat"),
        (
            Grammar(
                "json_schema",
                '{"type":"object","properties":{"a":{"const":"The cat"}},"required":["a"],'
                '"additionalProperties":false,'
                '"x-guidance":{"whitespace_flexible":false}}',
            ),
            b'{"a":"The cat"}',
        ),
    ],
)
def test_where_one_text_can_follow_any_token_of_it_may(grammar: Grammar, text: bytes) -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), *_TOKENS]
    tokenizer = GrammarTokenizer(Vocabulary(tokens), ())
    for start in range(len(text)):
        matcher = compile_grammar(grammar, tokenizer)
        assert matcher.try_consume_tokens(list(text[:start])) == start
        fitting = {i for i, token in enumerate(tokens) if text[start:].startswith(token)}
        assert allowed(matcher, len(tokens)) == fitting, text[start:]


def test_a_vocabulary_is_written_once(tmp_path: Path) -> None:
    vocabulary = Vocabulary([b"\xff\x00", b"", b"x" * 70000], [1])
    path = vocabulary.write(str(tmp_path))
    written = Path(path).stat().st_mtime_ns
    assert vocabulary.write(str(tmp_path)) == path
    assert Path(path).stat().st_mtime_ns == written
    assert Vocabulary.read(path) == vocabulary
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_kept_is_bounded_and_the_least_lately_used_goes() -> None:
    kept: RecentlyUsed[int] = RecentlyUsed(3, max_size=10)
    for value in range(4):
        kept.put(value, value, size=1)
    assert [kept.get(value) for value in range(4)] == [None, 1, 2, 3]
    kept.get(1)
    kept.put(4, 4, size=7)  # 1 and 3 are what is left of the others
    assert [kept.get(value) for value in (1, 2, 3, 4)] == [1, None, 3, 4]
    kept.put(5, 5, size=50)
    assert [kept.get(value) for value in (1, 3, 4, 5)] == [None, None, None, 5]
    assert len(kept) == 1
