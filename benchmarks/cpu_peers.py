"""Branchline beside transformers + peft and vLLM CPU: one run, interleaved, through HTTP.

    make bench                                   the whole comparison, about 25 minutes
    python benchmarks/cpu_peers.py --vllm PYTHON vLLM's environment (or BRANCHLINE_VLLM_PYTHON)

All serve the same random Llama of 38 M parameters in float32 with eight rank-16 adapters on all
linears. Each round asks every peer for every cell (base or adapters, 1, 8 or 32 requests at
once, 64 tokens in and 64 out, greedy) with the same prompts, in an order that rotates. Figures
are output tokens a second: medians over the rounds, and their ratio to each peer's.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median

import click

from branchline import __version__
from branchline.benchmarks.peers import servers
from branchline.benchmarks.peers.model import prepare
from branchline.server.bench.command import Target, load, write_json
from branchline.server.bench.report import Summary, machine, summarize
from branchline.server.bench.workload import Workload

RESULTS = Path(__file__).with_name("results")
TOKENS = 64
REQUESTS_OF = {1: 6, 8: 24, 32: 96}
"""Requests a round at each concurrency: three full waves at least."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of traffic."""

    models: str
    concurrency: int

    def workload(self, peer: servers.Peer, seed: int, share: float) -> Workload | None:
        """The cell for one peer; None if it does not serve those models."""
        names = [name for name in peer.models if (name == "base") == (self.models == "base")]
        if not names:
            return None
        count = max(self.concurrency, round(REQUESTS_OF[self.concurrency] * share))
        return Workload(
            models=tuple(names),
            concurrency=self.concurrency,
            num_prompts=count,
            num_warmup=0,
            input_len=TOKENS,
            output_len=TOKENS,
            vocab_size=16_000,
            ignore_eos=True,
            seed=seed,
        )


CELLS = tuple(Cell(*pair) for pair in product(("base", "adapters"), REQUESTS_OF))


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--share", type=float, default=1.0, help="Share of the requests; for a quick look.")
@click.option(
    "--vllm",
    "vllm_python",
    type=click.Path(exists=True, path_type=Path),
    envvar="BRANCHLINE_VLLM_PYTHON",
    help="The Python of an environment that holds vLLM CPU.",
)
@click.option("--only", multiple=True, help="Names of the peers to run; default: all there are.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(
    rounds: int,
    share: float,
    vllm_python: Path | None,
    only: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Measure, print a table of medians and ratios, and write the results as JSON."""
    if vllm_python is None:
        click.echo("vLLM is left out: no --vllm PYTHON, no BRANCHLINE_VLLM_PYTHON")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        paths = prepare(Path(directory))
        peers = [peer for peer in all_peers(paths, vllm_python) if not only or peer.name in only]
        for peer in peers:
            click.echo(f"starting {peer.name} {peer.version}")
            log = Path(directory) / f"{peer.name}.log"
            stack.enter_context(servers.serving(peer, log))
        measured = asyncio.run(measure(peers, rounds, share))
    click.echo(table(measured, [peer.name for peer in peers]))
    path = json_path or RESULTS / f"cpu-peers-{datetime.now(UTC):%Y-%m-%d}.json"
    write_json(path, document(peers, measured))
    click.echo(f"\nwritten to {path}")


def all_peers(paths: dict[str, Path], vllm_python: Path | None) -> list[servers.Peer]:
    """Ours first; vLLM twice, since base traffic is faster there with LoRA off."""
    libraries = f"{version('transformers')} + {version('peft')}"
    peers = [servers.branchline(paths, __version__), servers.peft(paths, libraries)]
    if vllm_python is not None:
        peers += [servers.vllm(paths, vllm_python, with_lora) for with_lora in (True, False)]
    return peers


Measured = dict[tuple[Cell, str], list[Summary]]


async def measure(peers: list[servers.Peer], rounds: int, share: float) -> Measured:
    """All cells of all peers, ``rounds`` times after a first round that does not count."""
    measured: Measured = {}
    for number in range(rounds + 1):
        order = peers[number % len(peers) :] + peers[: number % len(peers)]
        for cell, peer in product(CELLS, order):
            workload = cell.workload(peer, seed=number, share=share if number else share / 3)
            if workload is None:
                continue
            target = Target(base_url=peer.url)
            summary = summarize(await load(target, workload, show_progress=False))
            require_complete(peer, workload, summary)
            if number:
                measured.setdefault((cell, peer.name), []).append(summary)
            rate = f"{summary.output_tokens_per_second:8.1f} tokens/s"
            name = f"{cell.models} x {cell.concurrency}"
            click.echo(
                f"{f'round {number}' if number else 'warm-up'}  {name:<14}{peer.name:<20}{rate}"
            )
    return measured


def require_complete(peer: servers.Peer, workload: Workload, summary: Summary) -> None:
    """Every answer came and had all its tokens: a figure counts only then."""
    expected = workload.num_prompts * TOKENS
    if summary.num_failed or summary.num_output_tokens != expected:
        raise click.ClickException(
            f"{peer.name}: {summary.num_output_tokens} of {expected} tokens, {summary.errors}"
        )


def medians(measured: Measured) -> dict[tuple[Cell, str], float]:
    """Output tokens a second, the median over the rounds."""
    return {
        key: median(summary.output_tokens_per_second for summary in summaries)
        for key, summaries in measured.items()
    }


def ratio(measured: Measured, cell: Cell, name: str) -> float | None:
    """The median over the rounds of ours/theirs, each within its round."""
    ours, theirs = measured.get((cell, "branchline")), measured.get((cell, name))
    if not ours or not theirs:
        return None
    pairs = zip(ours, theirs, strict=True)
    return median(a.output_tokens_per_second / b.output_tokens_per_second for a, b in pairs)


def table(measured: Measured, names: list[str]) -> str:
    """Medians of each peer, and ours over theirs in brackets."""
    rates = medians(measured)
    lines = ["", "output tokens/s (branchline / peer)", ""]
    lines.append(f"{'':<16}" + "".join(f"{name:>26}" for name in names))
    for cell in CELLS:
        row = f"{f'{cell.models} x {cell.concurrency}':<16}"
        for name in names:
            rate, times = rates.get((cell, name)), ratio(measured, cell, name)
            text = "-" if rate is None else f"{rate:.1f}"
            if times is not None and name != "branchline":
                text += f" ({times:.2f}x)"
            row += f"{text:>26}"
        lines.append(row)
    return "\n".join(lines)


def document(peers: list[servers.Peer], measured: Measured) -> dict[str, object]:
    """The results file: what ran, where, on which versions, every round's figures."""
    rates = medians(measured)
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"load_average": os.getloadavg()},
        "versions": {peer.name: peer.version for peer in peers} | {"torch": version("torch")},
        "model": "random Llama: hidden 512, 8 layers, vocab 16000, float32; 8 adapters, rank 16",
        "workload": {"input_tokens": TOKENS, "output_tokens": TOKENS, "requests": REQUESTS_OF},
        "cells": [
            {
                "models": cell.models,
                "concurrency": cell.concurrency,
                "peer": name,
                "output_tokens_per_second": rates[cell, name],
                "branchline_over_peer": ratio(measured, cell, name),
                "rounds": [asdict(summary) for summary in summaries],
            }
            for (cell, name), summaries in measured.items()
        ],
    }


if __name__ == "__main__":
    main()
