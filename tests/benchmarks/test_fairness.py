"""The fairness benchmark: what it counts, whom it serves, and a whole run on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from caching_server import CachingServer

from branchline.benchmarks import fairness
from branchline.benchmarks.cases import shares
from branchline.benchmarks.cases.client import Answer
from branchline.benchmarks.cases.phases import FLOOD, NINE, WEIGHTS, Phase, Plan, run_phase
from branchline.benchmarks.cases.tenants import Served, Shape, Tenant, Window, arrivals
from branchline.cli import cli
from branchline.server.access import Tenant as AccessTenant
from branchline.server.config import parse_serve_options

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fairness.py"
PLAN = Plan(
    rounds=1,
    seconds=0.5,
    load=0.5,
    outstanding=3,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    num_threads=1,
    shape=Shape(6, 2, 9_000),
)


def served(tenant: str, started: float, *arrivals: tuple[float, int]) -> Served:
    answer = Answer(
        started=started,
        arrivals=list(arrivals),
        prompt_token_ids=[],
        token_ids=[],
        text="",
        num_prompt_tokens=4,
        num_cached_tokens=0,
    )
    return Served(tenant, answer)


def test_a_window_counts_tokens_that_came_and_requests_sent_inside_it() -> None:
    window = Window(
        10.0,
        20.0,
        [
            served("a", 9.0, (9.5, 1), (10.0, 2), (12.0, 1)),
            served("a", 19.0, (19.5, 4), (20.0, 8)),
            served("b", 11.0, (25.0, 16)),
        ],
    )
    assert window.output_tokens("a") == 2 + 1 + 4
    assert window.output_rate("a", "b") == pytest.approx(0.7)
    assert window.first_token_times("a") == [0.5]
    assert window.first_token_times("b") == [14.0]


def test_arrivals_keep_a_pace_and_are_always_the_same() -> None:
    moments = arrivals(5.0, 400.0, "a")
    assert moments == arrivals(5.0, 400.0, "a") != arrivals(5.0, 400.0, "b")
    gaps = [after - before for before, after in pairwise(moments)]
    assert min(gaps) >= 0.1
    assert max(gaps) <= 0.3
    assert 0 <= moments[0] <= 0.2
    assert 399 < moments[-1] < 400
    assert len(moments) == pytest.approx(2000, rel=0.02)


def window_of(rates: dict[str, int], first_tokens: list[float]) -> Window:
    """One second in which each tenant had so many tokens, and the nine such first tokens."""
    tokens = [served(name, -1.0, (0.5, rate)) for name, rate in rates.items()]
    return Window(0.0, 1.0, tokens + [served(NINE[0], 0.1, (0.1 + t, 0)) for t in first_tokens])


def test_figures_are_ratios_of_the_same_round() -> None:
    rounds = [
        (window_of({NINE[0]: 100}, [1.0]), window_of({NINE[0]: 90, FLOOD: 60}, [1.5])),
        (window_of({NINE[1]: 50}, [1.0]), window_of({NINE[1]: 40, FLOOD: 80}, [2.5])),
    ]
    phases = [
        Phase(policy, bool(flood), pair[flood])
        for pair in rounds
        for policy in ("fair", "fcfs")
        for flood in (0, 1)
    ]
    found = shares.figures(phases, "fair")
    assert found["nine_kept"] == pytest.approx((0.9 + 0.8) / 2)
    assert found["p50_ratio"] == pytest.approx(2.0)
    assert found["all_tokens_per_second_flooded"] == pytest.approx(135)
    assert shares.total_ratio(phases) == 1
    slower = [Phase("fair", True, window_of({FLOOD: 75}, [])), phases[3]]
    assert shares.total_ratio(slower) == pytest.approx(0.5)
    weights = shares.by_weight(window_of({"light": 10, "medium": 22, "heavy": 38}, []))
    assert weights["light"]["error"] == pytest.approx(0.0)
    assert weights["medium"]["error"] == pytest.approx(0.1)
    assert weights["heavy"]["error"] == pytest.approx(-0.05)
    results = {"fair": found, "fcfs": found, "fair_over_fcfs_tokens": 1.0, "weights": weights}
    assert "weight 2: 31.4% of the tokens, 28.6% due (+10.0%)" in shares.report(results)


async def test_the_flood_lasts_as_long_as_the_nine_need_and_is_bounded() -> None:
    server = CachingServer(seconds=0.02)
    names = (*NINE, FLOOD)
    tenants = {name: Tenant(name, server.client(), PLAN.shape) for name in names}
    moments = {name: [0.05, 0.49] for name in NINE}
    window = await run_phase(tenants, moments, PLAN, with_flood=True)
    assert window.end - window.start == pytest.approx(0.8 * PLAN.seconds)
    last = {one.tenant: one.answer.ended for one in window.served}
    assert last[FLOOD] >= max(window.end, *(last[name] for name in NINE)) - 0.1
    sent = [one.tenant for one in window.served]
    assert {name: sent.count(name) for name in NINE} == dict.fromkeys(NINE, 2)
    assert sent.count(FLOOD) > 10
    assert len({tuple(body["prompt"]) for body in server.bodies}) == len(sent)
    alone = await run_phase(tenants, moments, PLAN, with_flood=False)
    assert {one.tenant for one in alone.served} == set(NINE)


@pytest.mark.parametrize("policy", ["fair", "fcfs"])
def test_the_server_takes_the_flags_and_knows_every_tenant(policy: str) -> None:
    command = cli.commands["serve"]
    context = command.make_context("serve", ["model", *fairness.server_flags(policy, PLAN)])
    config = parse_serve_options(context.params)
    assert config.engine.scheduling_policy == policy
    assert config.engine.max_num_seqs == 4
    for name in (FLOOD, *NINE, *WEIGHTS):
        tenant = config.access.tenant_of(fairness.key_of(name).encode())
        assert tenant == AccessTenant(name, WEIGHTS.get(name, 1))


@pytest.mark.slow
def test_a_tiny_run_serves_all_and_writes_its_figures(tmp_path: Path) -> None:
    """Nothing is timed here: the two servers come up, every request is answered."""
    path = tmp_path / "fairness.json"
    arguments = ["--layers", "1", "--rounds", "1", "--seconds", "2", "--outstanding", "8"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *arguments, "--json", str(path)],
        env=env, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text()
    for policy in ("fair", "fcfs"):
        assert found[policy]["nine_tokens_per_second_flooded"] > 0
        assert found[policy]["all_tokens_per_second_flooded"] > 0
    assert sum(one["share"] for one in found["weights"].values()) == pytest.approx(1)
