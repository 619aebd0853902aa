"""``branchline bench``: load an OpenAI-compatible server and say how it took it."""

from __future__ import annotations

import asyncio
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from tqdm import tqdm

from .. import __version__
from .bench_load import Outcome, run_load
from .bench_report import machine, report, summarize, table
from .bench_workload import Workload, plan_requests, plan_warmup


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server under load; ``base_url`` ends in ``/v1``."""

    base_url: str
    api_key: str | None = None
    timeout: float = 600.0

    def client(self) -> httpx.AsyncClient:
        """A client without a limit on connections: the workload alone sets the load."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers=headers,
            timeout=self.timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )


def with_version(url: str) -> str:
    """The address with ``/v1`` at its end, whether or not it was given with it."""
    trimmed = url.rstrip("/")
    return trimmed if trimmed.endswith("/v1") else f"{trimmed}/v1"


async def load(target: Target, workload: Workload, show_progress: bool) -> list[Outcome]:
    """Warm up, then run the workload; raises ClickException if the warm-up fails."""
    async with target.client() as client:
        warmup = await run_load(client, workload, plan_warmup(workload), lambda outcome: None)
        failed = [outcome.error for outcome in warmup if outcome.error]
        if failed:
            raise click.ClickException(f"warm-up failed: {failed[0]}")
        requests = plan_requests(workload)
        # None: no bar where there is no terminal to draw it on.
        with tqdm(total=len(requests), disable=None if show_progress else True) as bar:

            def on_done(outcome: Outcome) -> None:
                bar.update()

            return await run_load(client, workload, requests, on_done)


def server_facts(target: Target) -> dict[str, Any]:
    """What the server says of itself: ``/version`` and the ids of ``/v1/models``."""
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    root = target.base_url.removesuffix("/v1")
    with httpx.Client(headers=headers, timeout=30) as client:
        models = client.get(f"{target.base_url}/models")
        models.raise_for_status()
        version = client.get(f"{root}/version")
    is_known = version.status_code == httpx.codes.OK
    return {
        "base_url": target.base_url,
        "version": version.json() if is_known else None,
        "models": [entry["id"] for entry in models.json()["data"]],
    }


def command_line(arguments: list[str]) -> str:
    """The command as typed, less the key."""
    shown = list(arguments)
    for index, argument in enumerate(shown):
        if argument.startswith("--api-key="):
            shown[index] = "--api-key=***"
        elif index and shown[index - 1] == "--api-key":
            shown[index] = "***"
    return shlex.join(["branchline", *shown])


def results(target: Target, workload: Workload, outcomes: list[Outcome]) -> dict[str, object]:
    """What a results file holds: what was run, where, on what, and its figures."""
    return {
        "command": command_line(sys.argv[1:]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"branchline": __version__, "httpx": httpx.__version__},
        "machine": machine(),
        "server": server_facts(target),
        "workload": asdict(workload),
        **report(outcomes),
    }


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write a results file, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


@click.command("bench")
@click.option("--base-url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--model", "models", multiple=True, help="May repeat; default: the first one served.")
@click.option("--api-key", help="Sent as a bearer token.")
@click.option("--endpoint", type=click.Choice(["completions", "chat"]), default="completions")
@click.option("--concurrency", type=click.IntRange(1), help="Requests at once.  [default: 8]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Arrivals/s, Poisson.")
@click.option("--num-prompts", type=click.IntRange(1), default=64, show_default=True)
@click.option("--num-warmup", type=click.IntRange(0), default=2, show_default=True)
@click.option("--input-len", type=click.IntRange(1), default=64, show_default=True)
@click.option("--output-len", type=click.IntRange(1), default=64, show_default=True)
@click.option("--prefix-len", type=click.IntRange(0), default=0, help="Shared tokens put first.")
@click.option("--num-prefixes", type=click.IntRange(1), default=1, help="Distinct shared prefixes.")
@click.option("--model-choice", type=click.Choice(["round-robin", "zipf"]), default="round-robin")
@click.option("--zipf-exponent", type=float, default=1.0, show_default=True)
@click.option("--vocab-size", type=click.IntRange(2), default=1000, help="Token ids stay below it.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--ignore-eos", is_flag=True, help="Always generate --output-len tokens.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--timeout", type=float, default=600.0, help="Seconds without a byte.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write results here.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def bench_command(
    base_url: str,
    api_key: str | None,
    timeout: float,
    json_path: Path | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Load an OpenAI-compatible server; exit 1 if any request failed.

    Prompts are random token ids, so their lengths are exact (--endpoint chat: random words).
    """
    target = Target(base_url=with_version(base_url), api_key=api_key, timeout=timeout)
    workload = parse_workload(target, given)
    outcomes = asyncio.run(load(target, workload, show_progress=not quiet))
    summary = summarize(outcomes)
    click.echo(table(summary))
    if json_path is not None:
        write_json(json_path, results(target, workload, outcomes))
    if summary.num_failed:
        raise SystemExit(1)


def parse_workload(target: Target, given: dict[str, Any]) -> Workload:
    """The options as a workload; the server is asked for a model if none was named."""
    if given["rate"] is not None and given["concurrency"] is not None:
        raise click.UsageError("--rate and --concurrency exclude each other")
    given["concurrency"] = given["concurrency"] or 8
    given["models"] = given["models"] or first_model(target)
    return Workload(**given)


def first_model(target: Target) -> tuple[str, ...]:
    """The first model that the server lists; a click error says why there is none."""
    try:
        return tuple(server_facts(target)["models"][:1])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"{target.base_url}/models: {error}") from error
