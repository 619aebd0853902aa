"""Replicas that die, freeze and leave in the midst of streams: no client notices."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from gateway_process import Fleet
from server_process import wait_for
from stream_load import Case, streaming

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

ROUNDS = 3


def turn(house: Fleet, number: int) -> str:
    """Another replica each time."""
    return sorted(house.replicas)[number % len(house.replicas)]


def test_a_replica_is_killed(house: Fleet, cases: list[Case]) -> None:
    before = house.gateway.metric("branchline_gateway_resumes_total")
    with streaming([house.url], cases) as load:
        for number in range(ROUNDS):
            load.wait_for_more(6)
            victim = turn(house, number)
            house.kill(victim)
            load.wait_for_more(6)
            house.start_replica(victim)
            house.replicas[victim].wait_until_ready(120)
            house.wait_until_up()
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=12 * ROUNDS)
    assert house.gateway.metric("branchline_gateway_resumes_total") > before


def test_a_replica_freezes(house: Fleet, cases: list[Case]) -> None:
    """SIGSTOP of server and engine: open connections, no word. Out within 5 s."""
    with streaming([house.url], cases) as load:
        for number in range(ROUNDS):
            load.wait_for_more(6)
            victim = turn(house, number)
            family = family_of(house.replicas[victim].process.pid)
            stop_all(family)
            frozen_at = time.monotonic()
            try:
                wait_for(lambda v=victim: v not in house.up(), 5.0, house.output)  # type: ignore[misc]
                assert time.monotonic() - frozen_at <= 5.0
                load.wait_for_more(6)
            finally:
                continue_all(family)
            house.wait_until_up()
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=12 * ROUNDS)


def test_an_engine_freezes_behind_a_server_that_answers(house: Fleet, cases: list[Case]) -> None:
    """Beats go on and /health says 200; steps do not come: the wedge rule."""
    with streaming([house.url], cases) as load:
        load.wait_for_more(6)
        victim = turn(house, 0)
        engine = house.replicas[victim].engine_pid
        os.kill(engine, signal.SIGSTOP)
        try:
            assert house.replicas[victim].status("/health") == 200
            wait_for(lambda: victim not in house.up(), 8.0, house.output)
            load.wait_for_more(6)
        finally:
            os.kill(engine, signal.SIGCONT)
        house.wait_until_up()
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=12)


def test_a_replica_leaves_in_order(house: Fleet, cases: list[Case]) -> None:
    """SIGTERM: what it has, it finishes; nothing new comes; nothing needs to be resumed."""
    with streaming([house.url], cases) as load:
        for number in range(ROUNDS):
            load.wait_for_more(6)
            leaver = turn(house, number)
            house.replicas[leaver].terminate()
            assert house.replicas[leaver].wait(60) == 0
            load.wait_for_more(4)
            house.start_replica(leaver)
            house.replicas[leaver].wait_until_ready(120)
            house.wait_until_up()
        verdicts = load.stop()
    verdicts.assert_all_right(at_least=10 * ROUNDS)


def family_of(pid: int) -> list[int]:
    """A process and all below it, the children last."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def stop_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def continue_all(pids: list[int]) -> None:
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
