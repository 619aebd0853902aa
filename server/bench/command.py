"""``branchline bench``: load an OpenAI-compatible server and say how it took it."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from tqdm import tqdm

from ... import __version__
from .load import Outcome, run_load
from .report import machine, report, summarize, table
from .workload import Workload, plan_requests, plan_warmup

# A folder in its place is refused before the load, not after it.
_FILE = click.Path(dir_okay=False, path_type=Path)


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
    """What the server says of itself: ``/version`` and the ids of ``/v1/models``.

    A click error says why it says nothing.
    """
    url = f"{target.base_url}/models"
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    root = target.base_url.removesuffix("/v1")
    try:
        with httpx.Client(headers=headers, timeout=30) as client:
            models = client.get(url)
            version = client.get(f"{root}/version")
        if models.status_code != httpx.codes.OK:
            raise click.ClickException(f"{url}: HTTP {models.status_code}: {models.text[:200]}")
        is_known = version.status_code == httpx.codes.OK
        return {
            "base_url": target.base_url,
            "version": version.json() if is_known else None,
            "models": [entry["id"] for entry in models.json()["data"]],
        }
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"{url}: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise click.ClickException(f"{url} is no OpenAI model list") from error


def command_line(arguments: list[str]) -> str:
    """The command as typed, less the key."""
    shown = list(arguments)
    for index, argument in enumerate(shown):
        if argument.startswith("--api-key="):
            shown[index] = "--api-key=***"
        elif index and shown[index - 1] == "--api-key":
            shown[index] = "***"
    return shlex.join(["branchline", *shown])


def results(
    facts: Mapping[str, Any], workload: Workload, outcomes: list[Outcome]
) -> dict[str, object]:
    """What a results file holds: what was run, where, on what, and its figures."""
    return {
        "command": command_line(sys.argv[1:]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"branchline": __version__, "httpx": httpx.__version__},
        "machine": machine(),
        "server": facts,
        "workload": asdict(workload),
        **report(outcomes),
    }


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write a results file, its folders too."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    except OSError as error:
        raise click.ClickException(f"--json {path}: {error.strerror or error}") from error


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
@click.option("--json", "json_path", type=_FILE, help="Write results here.")
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
    facts = server_facts(target) if json_path is not None or not given["models"] else {}
    workload = parse_workload(facts, given)
    outcomes = asyncio.run(load(target, workload, show_progress=not quiet))
    summary = summarize(outcomes)
    click.echo(table(summary))
    if json_path is not None:
        write_json(json_path, results(facts, workload, outcomes))
    if summary.num_failed:
        raise SystemExit(1)


def parse_workload(facts: Mapping[str, Any], given: dict[str, Any]) -> Workload:
    """The options as a workload, of the first model that the server listed if none was named."""
    if given["rate"] is not None and given["concurrency"] is not None:
        raise click.UsageError("--rate and --concurrency exclude each other")
    given["concurrency"] = given["concurrency"] or 8
    if given["num_prefixes"] > 1 and not given["prefix_len"]:
        raise click.UsageError("--num-prefixes needs --prefix-len")
    given["models"] = given["models"] or tuple(facts["models"][:1])
    if not given["models"]:
        raise click.ClickException("the server lists no model; name one with --model")
    return Workload(**given)
