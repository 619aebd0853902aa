"""What every results file begins with: command, versions, machine."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click

from branchline import __version__
from branchline.server.bench.command import write_json
from branchline.server.bench.report import machine

RESULTS = Path(__file__).resolve().parents[1] / "results"


def heading(model: str) -> dict[str, object]:
    """The command as typed, less where things lie on this machine."""
    return {
        "command": command_line(sys.argv),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"load_average": os.getloadavg()},
        "versions": {"branchline": __version__, "torch": version("torch")},
        "model": model,
    }


def command_line(arguments: Sequence[str]) -> str:
    """``python benchmarks/NAME.py …``; of a path elsewhere only its last part is kept."""
    script, *rest = arguments
    shown = [_without_folders(argument) for argument in rest]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *shown])


def _without_folders(argument: str) -> str:
    name, equals, value = argument.rpartition("=")
    is_path = value.startswith(("/", "~", ".."))
    return f"{name}{equals}{Path(value).name}" if is_path else argument


def save(name: str, path: Path | None, document: dict[str, object]) -> None:
    """Write the results file, by default under ``benchmarks/results``, and say where."""
    path = path or RESULTS / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    write_json(path, document)
    click.echo(f"\nwritten to {path}")
