"""What is measured: paced requests beside direct ones, as many as go, streams that stay, memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import click
import httpx
import psutil

from . import wrk
from .house import House
from .process_tree import ProcessTree
from .wrk import Kind, Load, Measured

CONNECTIONS = 32
MANY = 64
MEGABYTE = 1 << 20
MAX_RAMP_SECONDS = 8.0
MAX_IDLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``rates`` are requests a second; ``seconds`` is how long each measurement takes."""

    rates: tuple[int, ...]
    seconds: float
    prompt_bytes: int
    num_streams: int
    stream_seconds: float
    num_prompts: int
    num_workers: int = 1


class CpuClock:
    """CPU seconds of each process, with those it started, since it was made."""

    def __init__(self, processes: Mapping[str, ProcessTree]) -> None:
        self._processes = processes
        self._begin = self._now()
        self._started = time.perf_counter()

    def _now(self) -> dict[str, float]:
        return {name: process.cpu_seconds() for name, process in self._processes.items()}

    def taken(self) -> dict[str, float]:
        """By name."""
        return {name: now - self._begin[name] for name, now in self._now().items()}

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._started


def measure(house: House, load: Load) -> dict[str, float]:
    """One load: latencies, what each process took of a request, and of the machine together."""
    clock = CpuClock(house.processes)
    measured = wrk.run(load)
    taken = {**clock.taken(), "wrk": measured.cpu_seconds}
    machine = clock.seconds * (psutil.cpu_count() or 1)
    count = max(measured.num_requests, 1)
    return {
        **_latencies(measured),
        "machine_share": sum(taken.values()) / machine,
        **{f"{name}_cpu_ms": seconds / count * 1000 for name, seconds in taken.items()},
    }


def _latencies(measured: Measured) -> dict[str, float]:
    return {
        "rate": measured.rate,
        "num_failed": measured.num_failed,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
    }


def paced(house: House, plan: Plan, kind: Kind = "plain") -> list[dict[str, object]]:
    """Every rate, directly, through a bare door and through the gateway, one after the other."""
    rows: list[dict[str, object]] = []
    for rate in plan.rates:
        # Under 30 ms of pause, connections would wait for each other.
        connections = max(CONNECTIONS, rate * 40 // 1000)
        by_way = {}
        for number, (way, url) in enumerate(_ways(house)):
            load = Load(
                url=url,
                keys=house.keys,
                seconds=plan.seconds,
                num_connections=connections,
                prompt_bytes=plan.prompt_bytes,
                kind=kind,
                pause=connections * 1000 / rate,
                first_number=rate * 1_000_000 + number * 300_000,
            )
            by_way[way] = measure(house, load)
        added = _added(by_way["gateway"], by_way["direct"])
        bare = {f"bare_{name}": ms for name, ms in _added(by_way["bare"], by_way["direct"]).items()}
        rows.append({"kind": kind, "wanted_rate": rate, **by_way, **added, **bare})
        _echo_paced(kind, by_way, {**added, **bare})
    return rows


def _ways(house: House) -> list[tuple[str, str]]:
    direct = ("direct", house.upstream_urls[0])
    return [direct, ("bare", house.bare_url), ("gateway", house.gateway_url)]


def _added(row: Mapping[str, float], direct: Mapping[str, float]) -> dict[str, float]:
    return {f"added_{name}_ms": row[f"{name}_ms"] - direct[f"{name}_ms"] for name in ("p50", "p99")}


def _echo_paced(
    kind: str, by_way: Mapping[str, Mapping[str, float]], added: Mapping[str, float]
) -> None:
    row = by_way["gateway"]
    click.echo(
        f"{kind:6} {row['rate']:6.0f}/s   added p50 {added['added_p50_ms']:6.2f} ms  "
        f"p99 {added['added_p99_ms']:6.2f} ms   gateway {row['gateway_cpu_ms']:5.2f} ms CPU each   "
        f"{row['machine_share']:4.0%} of the machine   {row['num_failed']:.0f} failed   "
        f"(a bare door: p50 {added['bare_added_p50_ms']:.2f} ms, "
        f"p99 {added['bare_added_p99_ms']:.2f} ms, {by_way['bare']['bare_cpu_ms']:.2f} ms CPU)"
    )


def flat_out(
    house: House, plan: Plan, kind: Kind, num_connections: int = MANY
) -> dict[str, object]:
    """As much as so many connections get answered, all of which begin at once."""
    load = Load(
        url=house.gateway_url,
        keys=house.keys,
        seconds=plan.seconds,
        num_connections=num_connections,
        prompt_bytes=plan.prompt_bytes,
        kind=kind,
        first_number=400_000_000,
    )
    row = measure(house, load)
    click.echo(
        f"{kind:6} {row['rate']:6.0f}/s with {num_connections} at once   "
        f"p50 {row['p50_ms']:.1f} ms  p99 {row['p99_ms']:.1f} ms   "
        f"gateway {row['gateway_cpu_ms']:.2f} ms CPU each   {row['num_failed']:.0f} failed"
    )
    return {"kind": kind, "num_connections": num_connections, **row}


def hold_streams(house: House, plan: Plan) -> dict[str, object]:
    """Many streams at once, each with a token a second: how many are held, and in what memory.

    They begin one after the other over ``MAX_RAMP_SECONDS``, and memory counts once all are there.
    """
    before = house.gateway.rss()
    ramp = min(MAX_RAMP_SECONDS, plan.stream_seconds / 4)
    load = Load(
        url=house.gateway_url,
        keys=house.keys,
        seconds=plan.stream_seconds,
        num_connections=plan.num_streams,
        prompt_bytes=plan.prompt_bytes,
        kind="hold",
        pause=ramp * 500,
        first_number=600_000_000,
    )
    clock = CpuClock(house.processes)
    process = wrk.start(load)
    samples = []
    with httpx.Client(timeout=30) as client:
        while clock.seconds < plan.stream_seconds - 1:
            time.sleep(1)
            samples.append((_num_held(client, house), house.gateway.rss()))
    share = clock.taken()["gateway"] / clock.seconds
    measured = wrk.finish(process)
    full = [rss for held, rss in samples if held >= plan.num_streams * 0.99]
    growth = (full[-1] - full[len(full) // 3]) / MEGABYTE if full else float("inf")
    most = max((held for held, _ in samples), default=0)
    click.echo(
        f"streams: {most} held at once, {measured.num_failed} failed; gateway {share:.0%} of a "
        f"core, {(max(rss for _, rss in samples) - before) / MEGABYTE:.0f} MB more, then "
        f"{growth:+.1f} MB over {len(full)} s"
    )
    return {
        "num_held": most,
        "num_failed": measured.num_failed,
        "gateway_cores": share,
        "rss_before_mb": before / MEGABYTE,
        "rss_mb_by_second": [round(rss / MEGABYTE, 1) for _, rss in samples],
        "growth_mb": growth,
    }


def _num_held(client: httpx.Client, house: House) -> int:
    states = (client.get(f"{url}/fleet/state").json() for url in house.upstream_urls)
    return sum(int(state.get("num_running", 0)) for state in states)


def idle(house: House, plan: Plan) -> dict[str, float]:
    """What each process takes of a core while nobody asks for anything."""
    clock = CpuClock(house.processes)
    time.sleep(min(plan.seconds, MAX_IDLE_SECONDS))
    cores = {name: seconds / clock.seconds for name, seconds in clock.taken().items()}
    click.echo(f"idle: the gateway takes {cores['gateway']:.1%} of a core")
    return cores


def distinct_prompts(house: House, plan: Plan) -> dict[str, object]:
    """Prompts that were never seen before, and the gateway's memory after each twentieth."""
    done, failed, best_rate = 0, 0, 1.0
    samples: list[tuple[int, float]] = []
    slice_seconds = 2.0
    time.sleep(min(plan.seconds, MAX_IDLE_SECONDS))
    while done < plan.num_prompts:
        load = Load(
            url=house.gateway_url,
            keys=house.keys,
            seconds=slice_seconds,
            num_connections=MANY,
            prompt_bytes=plan.prompt_bytes,
            first_number=700_000_000 + done,
        )
        measured = wrk.run(load)
        done, failed = done + measured.num_requests, failed + measured.num_failed
        samples.append((done, house.gateway.rss() / MEGABYTE))
        # The first slices may be slow: the gateway has to let go of thousands of streams.
        best_rate = max(best_rate, measured.rate)
        slice_seconds = max(2.0, plan.num_prompts / 20 / best_rate)
    at_third = next(index for index, (count, _) in enumerate(samples) if count * 3 >= done)
    growth = samples[-1][1] - samples[at_third][1]
    prompts = samples[-1][0] - samples[at_third][0]
    click.echo(
        f"{done} distinct prompts: {samples[-1][1]:.0f} MB; {growth:+.1f} MB over the last "
        f"{prompts}, {failed} failed"
    )
    return {
        "num_prompts": done,
        "num_failed": failed,
        "rss_mb": [{"num_prompts": count, "mb": round(mb, 1)} for count, mb in samples],
        "growth_mb": growth,
        "growth_over_prompts": prompts,
    }


def plan_figures(plan: Plan) -> dict[str, object]:
    """For a results file."""
    return asdict(plan)
