"""Streams that go on while adapters are loaded, replaced and unloaded, and while they are not."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from statistics import median
from typing import Any, Literal, get_args

import click

from branchline.server.bench.report import Percentiles, percentiles

from .adapter_files import SHAPES, AdapterStore
from .adapter_server import PATIENCE_SECONDS, POLL_SECONDS, Server
from .adapter_streams import NUM_LIVE, Line, expect, make_lines, put_version
from .adapter_traffic import gaps
from .client import RequestError
from .goals import Goal
from .tenants import Shape

Kind = Literal["quiet", "changes", "control"]
"""``changes``: adapters come and go. ``control``: a process of the niceness of the one that formats
adapters computes, and nothing else happens: what a busy processor costs on this machine."""

NICENESS = 10
FIRST_EXTRA = 1000 * len(SHAPES)
"""Adapters from this number on come and go without being asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnPlan:
    """``num_rounds`` times a quiet window, ``num_each`` changes of each kind, and a control."""

    num_rounds: int
    num_each: int
    quiet_seconds: float
    shape: Shape

    @property
    def num_changes(self) -> int:
        """Loads, and as many replaces and unloads, in all."""
        return self.num_rounds * self.num_each


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the streams, and what there was beside them."""

    kind: Kind
    start: float
    end: float

    def gaps(self, lines: Sequence[Line]) -> Percentiles:
        """Seconds between a stream's events, of all streams."""
        found = percentiles([gap for line in lines for gap in self._gaps(line)])
        if found is None:
            raise click.ClickException("a window without tokens: make it longer")
        return found

    def longest(self, lines: Sequence[Line]) -> float:
        """The longest of these gaps."""
        return max(gap for line in lines for gap in self._gaps(line))

    def _gaps(self, line: Line) -> list[float]:
        return gaps(line.answers, self.start, self.end)


@dataclass(slots=True)
class Changes:
    """What is done to the adapters, how long each kind of it takes, and RSS after each round."""

    server: Server
    store: AdapterStore
    lines: Sequence[Line]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    resident: list[dict[str, int]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    async def once(self) -> None:
        """Load a new adapter as far as the device, replace one in use, unload the new one."""
        number, admin = next(self._numbers), self.server.admin
        path, name = self.store.path(FIRST_EXTRA + number), f"extra{number}"
        with self._timed("put"):
            await admin.put(name, path)
        with self._timed("load"):
            await admin.load(name, "device")
        with self._timed("replace"):
            await put_version(self.server, self.lines[number % NUM_LIVE], self.store)
        with self._timed("unload"):
            await admin.delete(name)

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds.setdefault(kind, []).append(time.perf_counter() - started)


async def measure_churn(
    server: Server, store: AdapterStore, config: ChurnPlan
) -> tuple[dict[str, object], list[Line]]:
    """The figures, and the lines with all their answers, which are yet to be judged."""
    lines = make_lines(config.shape, config.num_changes)
    for number in range(config.num_changes):
        store.path(FIRST_EXTRA + number)  # written now, not while it is measured
    await expect(server, lines, store, config.shape)
    await _load_each_shape(server, store)
    for line in lines:
        await put_version(server, line, store)
    await _stream(server, lines, config, _windows(config, None))
    before = await _at_rest(server, lines, config)
    for line in lines:
        line.answers.clear()
    changes = Changes(server, store, lines)
    windows = await _stream(server, lines, config, _windows(config, changes))
    after = await _at_rest(server, lines, config, before)
    seconds = {kind: asdict(_percentiles(found)) for kind, found in changes.seconds.items()}
    results: dict[str, object] = {"before": before, "after": after, "seconds_of_changes": seconds}
    growth = changes.resident[-1]["all"] / changes.resident[0]["all"]
    results |= {"resident_by_round": changes.resident, "resident_last_over_first": growth}
    click.echo(f"RSS, after the last round / after the first: {growth:.3f}")
    return results | summary(windows, lines, before, after), lines


async def _load_each_shape(server: Server, store: AdapterStore) -> None:
    """Once, so that every process has had the memory that the largest take on their way."""
    for shape in range(len(SHAPES)):
        await server.admin.put("warm-up", store.path(FIRST_EXTRA - 1 - shape))
        await server.admin.load("warm-up", "device")
        await server.admin.delete("warm-up")


async def _windows(config: ChurnPlan, changes: Changes | None) -> list[Window]:
    """A quiet window; with ``changes`` one of each kind, by turns, and a quiet one in the end."""
    windows = [await _quiet(config.quiet_seconds)]
    if changes is not None:
        for _ in range(config.num_rounds):
            start = time.perf_counter()
            for _ in range(config.num_each):
                await changes.once()
            windows.append(Window("changes", start, time.perf_counter()))
            windows.append(await _control(config.quiet_seconds))
            windows.append(await _quiet(config.quiet_seconds))
            changes.resident.append(changes.server.resident_bytes())
    return windows


async def _quiet(seconds: float) -> Window:
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    return Window("quiet", start, time.perf_counter())


async def _control(seconds: float) -> Window:
    script = f"import os\nos.nice({NICENESS})\nwhile True: pass"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    start = time.perf_counter()
    try:
        await asyncio.sleep(seconds)
        return Window("control", start, time.perf_counter())
    finally:
        process.kill()
        await process.wait()


async def _stream(
    server: Server,
    lines: Sequence[Line],
    config: ChurnPlan,
    during: Coroutine[Any, Any, list[Window]],
) -> list[Window]:
    """Have all lines asked, one request after the other, while something is done."""
    work = asyncio.create_task(during)
    max_tokens = config.shape.output_tokens
    streams = [line.repeat(server.client, max_tokens, lambda: not work.done()) for line in lines]
    await asyncio.gather(work, *streams)
    return work.result()


async def _at_rest(
    server: Server,
    lines: Sequence[Line],
    config: ChurnPlan,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Memory and tiers once each line has been asked alone; waits for what there was before."""
    for line in lines:
        await server.client.complete(line.name, line.prompt, config.shape.output_tokens)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found: dict[str, Any] = dict(await server.admin.memory())
        entries = sorted(await server.admin.entries(), key=lambda entry: entry.name)
        found |= {"tiers": {entry.name: entry.tier for entry in entries}}
        found |= {"host_bytes_of_all": sum(entry.bytes.host for entry in entries)}
        if before is None or found.items() <= before.items() or time.monotonic() > deadline:
            return found | {"resident": server.resident_bytes()}
        await asyncio.sleep(POLL_SECONDS)


def summary(
    windows: Sequence[Window],
    lines: Sequence[Line],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> dict[str, object]:
    """Each window against the quiet one before it; raises where memory has not come back."""
    kept = [key for key in before if key != "resident" and before[key] != after[key]]
    if kept:
        differences = [f"{key}: {before[key]} before, {after[key]} after" for key in kept]
        raise RequestError("memory has not come back: " + "; ".join(differences))
    by_kind = {
        kind: [window.gaps(lines) for window in windows if window.kind == kind]
        for kind in get_args(Kind)
    }
    ratios, control = (
        [b.p99 / a.p99 for a, b in zip(by_kind["quiet"], by_kind[kind], strict=False)]
        for kind in ("changes", "control")
    )
    goal = Goal("p99 between tokens, with changes / quiet", median(ratios), "at most", 1.2)
    for kind, found in by_kind.items():
        click.echo(
            f"{kind:<8} between tokens: p50 {median(p.p50 for p in found) * 1000:6.2f} ms"
            f"   p99 {median(p.p99 for p in found) * 1000:6.2f} ms   (medians of windows)"
        )
    click.echo(goal.line())
    click.echo(f"p99 between tokens, with a busy processor / quiet: {median(control):.3f}")
    click.echo("device and host bytes are what they were")
    return {
        "ratios": ratios,
        "control_ratios": control,
        "windows": [
            {"kind": w.kind, "seconds": w.end - w.start, "longest": w.longest(lines)}
            | asdict(w.gaps(lines))
            for w in windows
        ],
        "goals": [goal.figures()],
    }


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    found = percentiles(seconds)
    assert found is not None, "every kind of change has been made"
    return found
