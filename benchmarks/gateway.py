"""What the gateway itself costs: a real gateway and Redis, wrk, and replicas that answer at once.

    python benchmarks/gateway.py            about six minutes on two cores
    python benchmarks/gateway.py --full     with a million distinct prompts, about an hour
    python benchmarks/gateway.py --seconds 2 --rates 100 --streams 50 --prompts 500
    python benchmarks/gateway.py --workers 1

Four tenants with API keys and all five limits, routing by cost over four replicas, the access log
on (to /dev/null). Each rate goes directly to a replica and then through the gateway, paced, with
prompts that differ; added latency is the difference of the two. Latency is of whole answers. The
limit beside it is a bare door (gateway_load/bare.py) over the same libraries, which does nothing
but pass on, in one process. The machine's share is that of all processes together: gateway, Redis,
replicas, wrk. The gateway is --workers processes and their parent; its CPU and memory are the sum.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import click

from branchline.benchmarks.cases import document
from branchline.benchmarks.cases.goals import Goal
from branchline.benchmarks.gateway_load import phases, wrk
from branchline.benchmarks.gateway_load.house import House, house
from branchline.benchmarks.gateway_load.phases import Plan
from branchline.gateway.up.redis_binary import find_redis_server

MAX_MACHINE_SHARE = 0.6
MILLION = 1_000_000


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=10.0, help="Of a measurement.")
@click.option("--rates", default="100,200,400,600,800,1000", show_default=True, metavar="N,N,...")
@click.option("--prompt-bytes", type=click.IntRange(64), default=2048, show_default=True)
@click.option("--streams", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--stream-seconds", type=click.FloatRange(3), default=32.0, show_default=True)
@click.option("--prompts", type=click.IntRange(1), default=30_000, show_default=True)
@click.option("--full", is_flag=True, help="A million distinct prompts.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Processes of the gateway.",
)
@click.option("--access-log/--no-access-log", default=True, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(
    rates: str,
    seconds: float,
    prompt_bytes: int,
    streams: int,
    stream_seconds: float,
    prompts: int,
    full: bool,
    workers: int,
    access_log: bool,
    json_path: Path | None,
) -> None:
    """Measure, print a line a figure, and write the results as JSON."""
    wrk.check_wrk()
    plan = Plan(
        rates=parse_rates(rates),
        seconds=seconds,
        prompt_bytes=prompt_bytes,
        num_streams=streams,
        stream_seconds=stream_seconds,
        num_prompts=MILLION if full else prompts,
        num_workers=workers,
    )
    click.echo(f"the gateway: {workers} worker{'s' if workers > 1 else ''}")
    results = document.heading("mock replicas")
    results["versions"] = versions()
    flags = () if access_log else ("--no-access-log",)
    with (
        tempfile.TemporaryDirectory() as directory,
        house(
            Path(directory),
            num_replicas=4,
            num_tenants=4,
            num_tokens=32,
            num_workers=workers,
            flags=flags,
        ) as made,
    ):
        results |= measure(made, plan)
    results["load_average_after"] = os.getloadavg()
    document.save("gateway", json_path, results)


def parse_rates(text: str) -> tuple[int, ...]:
    """``100,200``; raises ClickException."""
    try:
        rates = tuple(int(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or min(rates) < 1:
        raise click.ClickException("--rates: whole numbers of at least 1, with commas between")
    return rates


def measure(made: House, plan: Plan) -> dict[str, object]:
    """All figures, and the goals they have to meet."""
    wrk.run(
        wrk.Load(
            url=made.gateway_url,
            keys=made.keys,
            seconds=2,
            num_connections=8,
            prompt_bytes=plan.prompt_bytes,
        )
    )  # warm
    results: dict[str, object] = {"plan": phases.plan_figures(plan)}
    results["idle_cores"] = phases.idle(made, plan)
    results["paced"] = rows = phases.paced(made, plan)
    results["flat_out"] = at_once = [
        phases.flat_out(made, plan, "plain"),
        phases.flat_out(made, plan, "stream"),
        phases.flat_out(made, plan, "stream", plan.num_streams),
    ]
    results["streams"] = streams = phases.hold_streams(made, plan)
    results["distinct_prompts"] = prompts = phases.distinct_prompts(made, plan)
    goals = goals_of(rows, [*at_once, streams, prompts], plan)
    for goal in goals:
        click.echo(goal.line())
    return results | {"goals": [goal.figures() for goal in goals]}


def goals_of(rows: list[dict[str, Any]], others: list[dict[str, Any]], plan: Plan) -> list[Goal]:
    """What must hold; latencies at the highest rate under 60% of the machine.

    The last two of ``others`` are the streams that were held and the distinct prompts.
    """
    streams, prompts = others[-2:]
    under = [row for row in rows if row["gateway"]["machine_share"] < MAX_MACHINE_SHARE]
    row = max(under or rows, key=lambda row: cast("float", row["gateway"]["rate"]))
    gateway = row["gateway"]
    at = f"at {gateway['rate']:.0f}/s, {gateway['machine_share']:.0%} of the machine"
    num_streams = plan.num_streams
    return [
        Goal(f"gateway CPU ms a request {at}", gateway["gateway_cpu_ms"], "at most", 1.25),
        Goal(f"added p50 ms {at}", row["added_p50_ms"], "at most", 1.0),
        Goal(f"added p99 ms {at}", row["added_p99_ms"], "at most", 5.0),
        Goal("streams held at once", streams["num_held"], "at least", num_streams),
        Goal("MB more while they were held", streams["growth_mb"], "at most", 10.0),
        Goal(
            f"MB more over the last {prompts['growth_over_prompts']} of "
            f"{prompts['num_prompts']} distinct prompts",
            prompts["growth_mb"],
            "at most",
            10.0,
        ),
        Goal("requests that failed", _num_failed(rows, others), "at most", 0),
    ]


def _num_failed(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> int:
    paced = sum(row[way]["num_failed"] for row in rows for way in ("direct", "bare", "gateway"))
    return int(paced + sum(other["num_failed"] for other in others))


def versions() -> dict[str, str]:
    """Of what takes part."""
    packages = ("aiohttp", "redis", "uvicorn", "uvloop", "httptools", "msgspec")
    server = subprocess.run(
        [find_redis_server(), "--version"], capture_output=True, text=True, check=True
    )
    return {
        "branchline": document.__version__,
        **{name: version(name) for name in packages},
        "redis_server": server.stdout.strip(),
        "wrk": wrk.version(),
    }


if __name__ == "__main__":
    main()
