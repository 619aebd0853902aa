"""Which of the fleet's requests are here."""

from __future__ import annotations

import pytest

from branchline.server.fleet import ledger as ledger_module
from branchline.server.fleet.ledger import RequestLedger


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_request_is_known_while_it_is_here_and_a_minute_longer() -> None:
    clock = Clock()
    ledger = RequestLedger(clock)
    assert ledger.find("a") is None
    with ledger.enter("a") as entry:
        clock.now += 1000
        assert ledger.find("a") is entry
        assert not entry.is_sent
        entry.is_sent = True
    clock.now += 59
    found = ledger.find("a")
    assert found is not None
    assert found.is_sent
    clock.now += 2
    assert ledger.find("a") is None


def test_a_second_request_of_one_id_outlives_the_first() -> None:
    ledger = RequestLedger()
    first = ledger.enter("a")
    first.__enter__().is_sent = True
    with ledger.enter("a") as second:
        first.__exit__(None, None, None)
        assert ledger.find("a") is second
    found = ledger.find("a")
    assert found is second


def test_only_so_many_ended_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_ENDED", 3)
    ledger = RequestLedger(Clock())
    for number in range(5):
        with ledger.enter(str(number)):
            pass
    assert [number for number in range(5) if ledger.find(str(number))] == [2, 3, 4]
