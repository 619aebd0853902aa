"""Requests that wait for their grammars: one text of all that are equal, and bounded."""

from __future__ import annotations

import pytest
from grammar_house import GrammarHouse, make_grammar_model, run_all

from branchline.engine.grammar import grammars as module
from branchline.engine.types import Grammar


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> GrammarHouse:
    return GrammarHouse.of(make_grammar_model(tmp_path_factory.mktemp("model")))


def digits(number: int) -> Grammar:
    """A new text at each call."""
    return Grammar("regex", f"[0-9]{{{number}}}")


def test_choices_share_one_text(house: GrammarHouse) -> None:
    grammars = house.engine()._grammars
    for i in range(4):
        assert not grammars.open(house.request(f"{i}", digits(3)))
    waiting = list(grammars._waiting.values())
    assert len({id(key.grammar) for key, _ in waiting}) == 1
    assert len({id(request.params.grammar) for _, request in waiting}) == 1


def test_beyond_so_many_bytes_is_overloaded(
    house: GrammarHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 100)
    loop = house.engine()
    assert loop.add(house.request("a", digits(3))) == []
    assert loop.add(house.request("b", digits(3))) == []
    [refused] = loop.add(house.request("c", digits(4)))
    assert (refused.request_id, refused.error_kind) == ("c", "overloaded")
    assert loop.stats().num_waiting_for_grammar == 2
    for name in ("a", "b"):
        loop.abort(name)
    ended = run_all(loop, [house.request("d", digits(3))])
    assert ended["d"].reason == "stop"
    assert loop.add(house.request("e", digits(3))) == [], "it has been compiled"
    assert loop._grammars._num_bytes == 0
    assert loop.add(house.request("f", digits(4))) == []


def test_beyond_so_many_requests_is_overloaded(
    house: GrammarHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    loop = house.engine()
    ends = [end for i in range(4) for end in loop.add(house.request(f"{i}", digits(5)))]
    assert [(end.request_id, end.error_kind) for end in ends] == [
        ("2", "overloaded"),
        ("3", "overloaded"),
    ]
