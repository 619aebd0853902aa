"""What HTTP and text cost beside the engine: many chats streamed at once by a real server.

    python benchmarks/http_cost.py            SmolLM2, about two minutes on two cores
    python benchmarks/http_cost.py --tiny     a quick look on a small random model

``branchline serve`` is two processes: one speaks HTTP, tokenizes, detokenizes and streams; the
other computes. While --streams chats are answered at once, the CPU seconds of the first are set
against the engine's own time: its CPU seconds over its threads. The steps of a tiny random model
are shorter than any real one's: there the ratio is no figure to judge by. Then each part alone, in
microseconds.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click

from branchline.benchmarks.cases import document, http_load, http_parts
from branchline.benchmarks.cases.goals import Goal
from branchline.benchmarks.cases.http_load import LoadPlan
from branchline.benchmarks.cases.subject import (
    Subject,
    default_subject,
    own_subject,
    random_subject,
)
from branchline.benchmarks.peers import servers
from branchline.server.text.tokenizer import Tokenizer

MOST_SHARE = 0.1
LIBRARIES = ("fastapi", "msgspec", "pydantic", "tokenizers", "uvicorn", "uvloop")


@click.command()
@click.option("--model", help="A model directory of your own; default: SmolLM2.")
@click.option("--tiny", is_flag=True, help="A one-layer random model, everything smaller.")
@click.option("--streams", "num_streams", type=click.IntRange(1), default=32, show_default=True)
@click.option("--rounds", "num_rounds", type=click.IntRange(1), help="Default: 3; tiny: 1.")
@click.option("--tokens", "num_tokens", type=click.IntRange(2), help="Default: 64; tiny: 32.")
@click.option("--words", "num_words", type=click.IntRange(1), default=64, show_default=True)
@click.option("--threads", "num_threads", type=click.IntRange(1), help="Default: all cores.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(
    model: str | None,
    tiny: bool,
    num_threads: int | None,
    json_path: Path | None,
    **given: int | None,
) -> None:
    """Measure, print a line a figure, and write the results as JSON."""
    defaults = {"num_rounds": 1, "num_tokens": 32} if tiny else {"num_rounds": 3, "num_tokens": 64}
    plan = LoadPlan(**{**defaults, **{k: v for k, v in given.items() if v is not None}})
    threads = num_threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as directory:
        subject = choose_subject(model, tiny, Path(directory))
        rounds = measure_load(subject, plan, threads, Path(directory) / "log")
        parts = measure_parts(subject, plan)
    results = figures(rounds, parts, plan, threads, judged=not tiny)
    found = document.heading(subject.name) | {"plan": asdict(plan), "num_threads": threads}
    found["libraries"] = {name: version(name) for name in LIBRARIES}
    document.save("http", json_path, found | results)


def choose_subject(model: str | None, tiny: bool, directory: Path) -> Subject:
    """What the command line asks to have served; adapters have no part in this."""
    if model:
        return own_subject(model, ())
    return random_subject(directory, num_layers=1) if tiny else default_subject(directory)


def measure_load(
    subject: Subject, plan: LoadPlan, num_threads: int, log: Path
) -> list[http_load.Round]:
    """Rounds of streams on a server of their own."""
    flags = ("--num-threads", str(num_threads), "--max-num-seqs", str(plan.num_streams))
    with servers.serving(subject.server(*flags), log) as peer:
        processes = http_load.Processes.of_port(peer.port)
        return asyncio.run(http_load.run_rounds(peer.url, processes, plan))


def measure_parts(subject: Subject, plan: LoadPlan) -> list[http_parts.Part]:
    """The server's parts alone, with this model's tokenizer and template."""
    template = subject.chat_template and subject.chat_template.read_text()
    tokenizer = Tokenizer.from_directory(str(subject.path), template)
    content = http_load.question(0, plan.num_words)
    return http_parts.measure_parts(tokenizer, content, plan.num_tokens, num_repeats=50)


def figures(
    rounds: Sequence[http_load.Round],
    parts: Sequence[http_parts.Part],
    plan: LoadPlan,
    num_threads: int,
    judged: bool,
) -> dict[str, object]:
    """Print what was found; the same for a results file."""
    load = http_load.summary(rounds, num_threads)
    click.echo(f"\n{plan.num_streams} streams at once, {num_threads} engine threads")
    for name, value in load.items():
        click.echo(f"  {name.replace('_', ' ')}: {value:.4g}")
    click.echo("\nparts alone, in microseconds")
    for part in parts:
        click.echo(f"  {part.name:24} {part.microseconds:9.2f} a {part.unit}")
    goal = Goal(
        "HTTP and text over the engine's own time",
        load["server_over_engine"],
        "at most",
        MOST_SHARE,
    )
    if judged:
        click.echo(f"\n{goal.line()}")
    return {
        "load": load | {"rounds": [asdict(one) for one in rounds]},
        "parts": [asdict(part) for part in parts],
        "goals": [goal.figures()] if judged else [],
    }


if __name__ == "__main__":
    main()
