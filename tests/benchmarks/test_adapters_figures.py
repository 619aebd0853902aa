"""The adapter benchmark's arithmetic: who is asked, what counts, which version may answer."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from caching_server import CachingServer

from branchline.benchmarks.cases import adapter_churn, adapter_many, adapter_oversubscribed
from branchline.benchmarks.cases.adapter_churn import Window
from branchline.benchmarks.cases.adapter_server import Admin
from branchline.benchmarks.cases.adapter_streams import BASE, Line, make_lines
from branchline.benchmarks.cases.adapter_traffic import (
    Planned,
    Served,
    folded,
    gaps,
    name_of,
    plan,
    send_all,
    send_at,
    tokens_per_second,
    uniform,
    zipf,
)
from branchline.benchmarks.cases.client import Answer, RequestError
from branchline.benchmarks.cases.goals import Goal
from branchline.benchmarks.cases.tenants import Shape

SHAPE = Shape(input_tokens=5, output_tokens=3, vocab_size=2000)


def answer(started: float, *moments: float, token_ids: list[int] | None = None) -> Answer:
    return Answer(
        started=started,
        arrivals=[(moment, 1) for moment in moments],
        prompt_token_ids=[],
        token_ids=token_ids or [7] * len(moments),
        text="",
        num_prompt_tokens=4,
        num_cached_tokens=0,
    )


def served(started: float, *moments: float) -> Served:
    return Served(Planned(0, []), answer(started, *moments))


def test_the_second_adapter_is_asked_half_as_often_as_the_first() -> None:
    counts = Counter(zipf(1000, 40_000, 1.0, "seed"))
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / 40_000 == pytest.approx(1 / 7.485, rel=0.05)
    assert zipf(1000, 50, 1.0, 1) == zipf(1000, 50, 1.0, 1) != zipf(1000, 50, 1.0, 2)
    assert Counter(uniform(4, 40_000, 0))[3] == pytest.approx(10_000, rel=0.05)


def test_folding_keeps_prompts_and_adapter_shapes() -> None:
    many = plan([0, 63, 64, 999], SHAPE, 0)
    few = folded(many, 64)
    assert [one.adapter for one in few] == [0, 63, 0, 39]
    assert [one.prompt for one in few] == [one.prompt for one in many]
    assert len({tuple(one.prompt) for one in many}) == 4
    assert {len(one.prompt) for one in many} == {5}


async def test_all_requests_are_sent_so_many_at_once() -> None:
    server = CachingServer(seconds=0.02)
    requests = plan(range(7), SHAPE, 0)
    found = await send_all(server.client(), requests, SHAPE, 3)
    assert sorted(one.planned.adapter for one in found) == list(range(7))
    assert {body["model"] for body in server.bodies} == {name_of(number) for number in range(7)}
    moments = [
        event for one in found for event in ((one.answer.started, 1), (one.answer.ended, -1))
    ]
    under_way = [sum(change for _, change in sorted(moments)[: n + 1]) for n in range(len(moments))]
    assert max(under_way) == 3


async def test_requests_go_at_their_moments_answered_or_not() -> None:
    begin = time.perf_counter()
    requests = plan(range(3), SHAPE, 0)
    found = await send_at(CachingServer(seconds=0.3).client(), requests, SHAPE, [0.0, 0.05, 0.1])
    for one, moment in zip(found, (0.0, 0.05, 0.1), strict=True):
        assert one.answer.started >= begin + moment
    assert found[2].answer.started < found[0].answer.ended


def test_rates_and_gaps() -> None:
    assert tokens_per_second([served(1.0, 2.0, 3.0), served(0.0, 4.0)]) == pytest.approx(3 / 4)
    answers = [answer(0.0, 1.0, 1.5, 3.0, 3.1), answer(0.0, 2.0)]
    assert gaps(answers, 1.0, 3.05) == [0.5, 1.5]
    assert gaps(answers, 3.05, 9.0) == pytest.approx([0.1])


def run_of(server: str, seconds: float, *first_tokens: float) -> adapter_many.Run:
    answered = [served(0.0, first, seconds) for first in first_tokens]
    return adapter_many.Run(server, answered, {"device_loads": 3}, {"all": 10}, {"all": 1.0})


def test_ratios_are_taken_within_a_round() -> None:
    runs = [run_of("many", 4.0, 0.1), run_of("few", 3.0, 0.1), run_of("many", 2.0, 0.1)]
    runs += [run_of("few", 2.0, 0.1), run_of("many", 9.0, 0.1), run_of("few", 8.0, 0.1)]
    found = adapter_many.summary(runs, 1.3, 1.25)
    assert found["ratios"] == pytest.approx([3 / 4, 1, 8 / 9])
    assert [goal["value"] for goal in found["goals"]] == pytest.approx([8 / 9, 1.04])
    assert [goal["is_met"] for goal in found["goals"]] == [False, True]
    phases = [
        adapter_oversubscribed.Phase(server, [served(0.0, first, 9.0)] * 3, 0)
        for server, first in (("enough", 1.0), ("half", 3.0), ("enough", 2.0), ("half", 3.0))
    ]
    assert adapter_oversubscribed.summary(phases)["ratios"] == [3.0, 1.5]


def test_a_goal_says_whether_it_is_met() -> None:
    assert Goal("x", 0.9, "at least", 0.9).is_met
    assert not Goal("x", 1.21, "at most", 1.2).is_met
    assert "x: 1.210   (goal: at most 1.2, MISSED)" in Goal("x", 1.21, "at most", 1.2).line()


def line(**fields: object) -> Line:
    adapters: list[int | None] = [0, 16, 32]
    return Line("live0", adapters, [1], expected=[[1, 1], [2, 2], [3, 3]], **fields)  # type: ignore[arg-type]


def test_a_version_may_answer_from_its_put_until_the_next_is_there() -> None:
    one = line(begun=[0.0, 10.0, 20.0], ended=[1.0, 12.0, 22.0])
    for started, first_token, possible in (
        (5.0, 6.0, [0]),
        (9.0, 11.0, [0, 1]),
        (11.0, 11.5, [0, 1]),
        (12.5, 13.0, [1]),
        (11.9, 21.0, [0, 1, 2]),
        (30.0, 31.0, [2]),
    ):
        assert list(one.possible(answer(started, first_token, 99.0))) == possible
    old = answer(12.5, 13.0, 14.0, token_ids=[1, 1])
    assert one.version_of(old) is None, "the put of version 1 had been answered"
    assert one.version_of(answer(11.5, 13.0, 14.0, token_ids=[1, 1])) == 0
    mixed = answer(11.5, 13.0, 14.0, token_ids=[1, 2])
    assert one.version_of(mixed) is None


def test_lines_are_enough_for_all_replaces_and_keep_their_shape() -> None:
    lines = make_lines(SHAPE, 50)
    assert len(lines) == 8
    assert lines[-1].name == BASE
    live = [one for one in lines if len(one.adapters) > 1]
    assert sum(len(one.adapters) - 1 for one in live) >= 50
    for one in live:
        assert len({number % 16 for number in one.adapters if number is not None}) == 1
    numbers = [number for one in lines for number in one.adapters]
    assert len(set(numbers)) == len(numbers)


def test_a_window_is_held_against_the_quiet_one_before_it() -> None:
    one = line(answers=[answer(0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 7.5, 8.0)])
    kinds: tuple[adapter_churn.Kind, ...] = ("quiet", "changes", "control", "quiet")
    moments = pairwise([0.0, 2.5, 5.5, 7.2, 9.0])
    windows = [Window(kind, *ends) for kind, ends in zip(kinds, moments, strict=True)]
    memory = {"device": 5, "tiers": {"a": "device"}, "resident": {"all": 10}}
    found = adapter_churn.summary(windows, [one], memory, memory)
    assert found["ratios"] == pytest.approx([1.99])
    assert found["control_ratios"] == pytest.approx([1.0])
    assert [window["longest"] for window in found["windows"]] == [1.0, 2.0, 1.0, 0.5]
    grown = memory | {"device": 6, "resident": {"all": 20}}
    with pytest.raises(RequestError, match="device: 5 before, 6 after"):
        adapter_churn.summary(windows, [one], memory, grown)


async def test_what_the_server_refuses_ends_it(tmp_path: Path) -> None:
    entry = {"name": "a", "version": 1, "digest": "d", "tier": None}
    entry["bytes"] = {"device": 1, "host": 2, "disk": 3}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(202, json={"done": False})
        status, changed = (201, True) if request.url.path.endswith("/new") else (200, False)
        return httpx.Response(status, json={"changed": changed, "adapter": entry})

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(base_url="http://server", transport=transport) as http:
        admin = Admin(http)
        assert (await admin.put("new", tmp_path)).bytes.host == 2
        with pytest.raises(RequestError, match="HTTP 200, not 201"):
            await admin.put("old", tmp_path)
        with pytest.raises(RequestError, match="nothing has changed"):
            await admin.put("old", tmp_path, 200)
        with pytest.raises(RequestError, match=json.dumps(202)):
            await admin.delete("a")
