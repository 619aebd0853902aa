"""The comparison with peers: the shared model, the static-batch peer, medians and ratios."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import click
import httpx
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from branchline.benchmarks import cpu_peers
from branchline.benchmarks.peers import servers
from branchline.benchmarks.peers.model import NUM_ADAPTERS, prepare
from branchline.server.bench.load import Outcome
from branchline.server.bench.report import Summary, summarize


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare(tmp_path_factory.mktemp("model"), num_layers=1)


def test_all_peers_get_one_model_and_eight_distinct_adapters(paths: dict[str, Path]) -> None:
    assert list(paths) == ["base", *(f"adapter{index}" for index in range(NUM_ADAPTERS))]
    config = json.loads((paths["base"] / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"]) == (512, 16_000)
    weights = [load_file(paths[f"adapter{i}"] / "adapter_model.safetensors") for i in (0, 7)]
    b_name = next(name for name in weights[0] if "q_proj.lora_B" in name)
    assert weights[0][b_name].abs().max() > 0
    assert not weights[0][b_name].equal(weights[1][b_name])
    assert len(weights[0]) == 2 * 7


def test_any_token_id_is_text(paths: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(paths["base"])
    assert len(tokenizer) == 16_000
    text = tokenizer.decode(list(range(300, 16_000, 500)))
    assert text.isalpha()
    assert tokenizer.decode(tokenizer.encode("a plain line")) == "a plain line"


@pytest.fixture(scope="module")
def peft_peer(
    paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Peer]:
    log = tmp_path_factory.mktemp("peer") / "log"
    with servers.serving(servers.peft(paths, "test"), log) as peer:
        yield peer


def post(peer: servers.Peer, client: httpx.Client, model: str, prompt: list[int]) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": 5, "ignore_eos": True, "stream": True}
    response = client.post(f"{peer.url}/completions", json=body, timeout=120)
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[1])["usage"]["completion_tokens"] == 5
    return str(json.loads(events[0])["choices"][0]["text"])


@pytest.mark.slow
def test_the_static_batch_peer_answers_as_peft_does(
    peft_peer: servers.Peer, paths: dict[str, Path]
) -> None:
    """A mixed batch through HTTP gives each request what it gets alone in this process."""
    prompts = {"base": [5, 900, 77], "adapter3": [8, 4000, 1500, 31, 2000], "adapter0": [1, 2]}
    with httpx.Client() as client, ThreadPoolExecutor(3) as pool:
        jobs = {m: pool.submit(post, peft_peer, client, m, p) for m, p in prompts.items()}
        answers = {model: job.result() for model, job in jobs.items()}
    tokenizer = AutoTokenizer.from_pretrained(paths["base"])
    for model, prompt in prompts.items():
        reference = AutoModelForCausalLM.from_pretrained(paths["base"], dtype=torch.float32)
        if model != "base":
            reference = PeftModel.from_pretrained(reference, paths[model])
        ids = torch.tensor([prompt])
        out = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
            min_new_tokens=5, pad_token_id=0,
        )  # fmt: skip
        assert answers[model] == tokenizer.decode(out[0, len(prompt) :]), model


def test_a_peer_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = ("python3", "-c", "print('no such model'); raise SystemExit(3)")
    peer = servers.Peer("broken", "0", command, servers.free_port(), ("base",), {})
    with (
        pytest.raises(RuntimeError, match=r"broken did not come up:\nno such model"),
        servers.serving(peer, tmp_path / "log"),
    ):
        pass


def run_of(rate: float, tokens: int = 64) -> Summary:
    seconds = tokens / rate
    return summarize(
        [
            Outcome(
                model="base",
                started=0.0,
                seconds=seconds,
                first_token=0.1,
                num_output_tokens=tokens,
            )
        ]
    )


def test_ratios_are_medians_of_rounds_and_not_of_medians() -> None:
    cell = cpu_peers.Cell("base", 8)
    measured = {
        (cell, "branchline"): [run_of(100), run_of(300), run_of(200)],
        (cell, "vllm"): [run_of(50), run_of(100), run_of(400)],
    }
    assert cpu_peers.medians(measured)[cell, "vllm"] == pytest.approx(100)
    assert cpu_peers.ratio(measured, cell, "vllm") == pytest.approx(2.0)
    assert cpu_peers.ratio(measured, cell, "absent") is None
    shown = cpu_peers.table(measured, ["branchline", "vllm", "absent"])
    row = next(line for line in shown.splitlines() if line.startswith("base x 8"))
    assert row.split() == ["base", "x", "8", "200.0", "100.0", "(2.00x)", "-"]


def test_a_cell_sends_each_peer_the_same_and_skips_what_it_does_not_serve() -> None:
    both = SimpleNamespace(models=("base", "adapter0", "adapter1"))
    base_only = SimpleNamespace(models=("base",))
    adapters = cpu_peers.Cell("adapters", 8)
    assert adapters.workload(base_only, seed=1, share=1.0) is None
    workload = adapters.workload(both, seed=1, share=1.0)
    assert workload.models == ("adapter0", "adapter1")
    assert (workload.input_len, workload.output_len, workload.ignore_eos) == (64, 64, True)
    base = cpu_peers.Cell("base", 32)
    assert base.workload(both, 1, 1.0) == base.workload(base_only, 1, 1.0)
    assert base.workload(both, 1, 0.01).num_prompts == 32


def test_a_figure_with_missing_tokens_does_not_count() -> None:
    peer = SimpleNamespace(name="vllm", models=("base",))
    workload = cpu_peers.Cell("base", 1).workload(peer, seed=0, share=1.0)
    with pytest.raises(click.ClickException, match="vllm: 63 of 384 tokens"):
        cpu_peers.require_complete(peer, workload, run_of(10, tokens=63))
