"""The prefix benchmark: its arithmetic on a known cache, and a whole run on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from caching_server import ALORA, BLOCK_SIZE, GENERATION_PROMPT, CachingServer

from branchline.benchmarks.cases import agent_loop, document, replays, ttft
from branchline.benchmarks.cases.client import Client, RequestError

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "prefix.py"
AGENT = agent_loop.AgentPlan(
    num_turns=10,
    first_tokens=21,
    turn_tokens=6,
    answer_tokens=7,
    vocab_size=9_000,
    block_size=BLOCK_SIZE,
    generation_prompt=GENERATION_PROMPT,
)


@pytest.mark.parametrize("run", agent_loop.KINDS.values(), ids=agent_loop.KINDS)
@pytest.mark.parametrize(
    ("model", "invocation"), [("base", None), ("adapter", None), (ALORA, GENERATION_PROMPT)]
)
async def test_an_endless_cache_of_full_blocks_finds_exactly_the_ideal(
    model: str, invocation: list[int] | None, run: agent_loop.Run
) -> None:
    turns = await run(CachingServer().client(), model, AGENT, invocation)
    assert len(turns) == 10
    assert [turn.num_cached_tokens for turn in turns] == [turn.ideal for turn in turns]
    assert agent_loop.summary(turns)["of_ideal"] == 1
    assert turns[0].ideal == 0
    assert all(turn.ideal >= 20 for turn in turns[1:])


async def test_a_cache_that_forgets_is_below_the_ideal() -> None:
    client = CachingServer(forgets=1).client()
    turns = await agent_loop.run_token_ids(client, "base", AGENT, None)
    assert agent_loop.summary(turns)["of_ideal"] == pytest.approx(
        1 - 9 * BLOCK_SIZE / sum(turn.ideal for turn in turns)
    )


async def test_token_ids_bring_the_answer_back_whole_and_chats_do_not() -> None:
    ids = await agent_loop.run_token_ids(CachingServer().client(), "base", AGENT, None)
    chat = await agent_loop.run_chat(CachingServer().client(), "base", AGENT, None)
    assert agent_loop.summary(ids)["kept_by_text"] == 1
    assert agent_loop.summary(chat)["kept_by_text"] < 1
    # Turn 2 knows 21 + 6 + 3 prompt tokens and 6 of the 7 answered: 36 are 9 full blocks.
    assert ids[1].ideal == 36


async def test_the_ideal_of_an_activated_lora_ends_at_its_invocation() -> None:
    client = CachingServer().client()
    turns = await agent_loop.run_token_ids(client, ALORA, AGENT, GENERATION_PROMPT)
    assert turns[1].ideal == (21 + 6) // BLOCK_SIZE * BLOCK_SIZE
    assert turns[2].ideal == (21 + 6 + 3 + 7 + 6) // BLOCK_SIZE * BLOCK_SIZE


async def test_each_round_has_a_fresh_prefix_and_two_questions() -> None:
    server = CachingServer()
    plan = ttft.TtftPlan(
        prefix_tokens=40,
        question_tokens=8,
        num_rounds=3,
        vocab_size=9_000,
        ending=GENERATION_PROMPT,
    )
    rounds = await ttft.measure_ttft(server.client(), "adapter", plan)
    assert [(one.cold_cached_tokens, one.cached_tokens) for one in rounds] == [(0, 40)] * 3
    assert all(one.cold_seconds > 0 and one.cached_seconds > 0 for one in rounds)
    prompts = [body["prompt"] for body in server.bodies]
    assert len(prompts) == 8
    assert {len(prompt) for prompt in prompts} == {51}
    assert prompts[0][:40] == prompts[1][:40] != prompts[2][:40]
    assert prompts[0][40:48] != prompts[1][40:48]


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [ttft.Round(8, 2, 0, 9), ttft.Round(9, 1, 0, 9), ttft.Round(30, 5, 0, 9)]
    figures = ttft.summary(rounds)
    assert (figures["cold_seconds"], figures["cached_seconds"]) == (9, 2)
    assert figures["cold_over_cached"] == 6


PROMPTS = [[*range(9)], [*range(4), 50, 51, 52, 53, 54], [*range(9)], [*range(8)]]


async def test_a_replay_through_an_endless_cache_finds_what_the_simulation_does() -> None:
    ample, scarce, tiered = replays.pools(PROMPTS, BLOCK_SIZE, 1, 0.5)
    assert ample.num_blocks >= 3 + max(map(len, PROMPTS)) // BLOCK_SIZE
    assert (scarce.host_blocks, tiered.host_blocks) == (0, 3)
    assert scarce.num_blocks == tiered.num_blocks < ample.num_blocks
    server = CachingServer()
    result = await replays.replay(server.client(), PROMPTS, ample, BLOCK_SIZE, 1)
    assert result.cached_tokens == result.infinite == 4 + 8 + 4
    assert result.of_infinite == 1
    assert [body["prompt"] for body in server.bodies] == PROMPTS
    forgetful = CachingServer(forgets=1).client()
    lost = await replays.replay(forgetful, PROMPTS, ample, BLOCK_SIZE, 1)
    assert lost.of_infinite == pytest.approx(4 / 16)


async def test_the_client_sends_its_key_and_says_what_came() -> None:
    server = CachingServer()
    answer = await server.client().complete("base", [1, 2, 3, 4, 5], 3)
    assert (answer.prompt_token_ids, len(answer.token_ids)) == ([1, 2, 3, 4, 5], 3)
    assert (answer.text, answer.num_prompt_tokens) == ("xxx", 5)
    assert [num_tokens for _, num_tokens in answer.arrivals] == [1, 1, 1]
    assert 0 < answer.time_to_first_token <= answer.ended - answer.started
    assert server.bodies[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (429, "slow down", "HTTP 429: slow down"),
        (200, 'data: {"error": {"message": "boom"}}\n\n', "boom"),
        (200, 'data: {"choices": []}\n\n', r"without \[DONE\]"),
        (200, "data: [DONE]\n\n", "held no tokens"),
        (200, 'data: {"choices": 3}\n\n', "ValidationError"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(status: int, text: str, message: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=text)

    client = Client("http://server/v1", transport=httpx.MockTransport(answer))
    with pytest.raises(RequestError, match=message):
        await client.complete("base", [1], 1)


def test_a_results_file_does_not_say_where_things_lie() -> None:
    line = document.command_line(
        ["/home/me/repo/benchmarks/prefix.py", "--model", "/models/m", "--lora", "a=/x/y/a"]
    )
    assert line == "python benchmarks/prefix.py --model m --lora a=a"


def test_turns_are_compared_by_what_the_server_was_asked() -> None:
    assert agent_loop.num_common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert agent_loop.num_common([], [1]) == 0
    turn = agent_loop.Turn(100, 40, 50, 60)
    figures = agent_loop.summary([replace(turn, ideal=0, ideal_as_sent=0), turn])
    assert figures["of_prompts"] == 80 / 200
    assert figures["of_ideal"] == 80 / 50
    assert figures["kept_by_text"] == 50 / 60


@pytest.mark.slow
def test_a_tiny_run_meets_the_goals_that_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "prefix.json"
    command = [sys.executable, "-P", str(SCRIPT), "--tiny", "--rounds", "1", "--requests", "200"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json", str(path)], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text()
    for model, figures in found["time_to_first_token"].items():
        assert figures["cached_tokens"] == 600, model
        assert figures["rounds"][0]["cold_cached_tokens"] == 0
    for loop in found["agent_loop"]:
        assert loop["of_ideal"] >= 0.95, loop
    fits, too_small, tiered = found["replay"]
    assert fits["of_infinite"] >= 0.95
    assert too_small["of_infinite"] < 0.8
    assert tiered["of_infinite"] > too_small["of_infinite"]
