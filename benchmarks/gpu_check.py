"""Everything that only a GPU can show, in one command of a few minutes: ``make gpu-check``.

Checks each op on the device against float64, the whole engine's tokens against the host's,
graphs and steps that overlap; times decode and prefill of a random model of Llama-3.1-8B's
shape with and without adapters, adapters loaded beside the steps, and transformers with PEFT on
the same card. Needs torch with CUDA, Triton, numpy and safetensors, and no installed package and
no network. Exit status: 0 all as it should be, 1 something is not, 2 no CUDA device.
``--device cpu --shape tiny`` tries all of it out without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHAPES = ("8b", "qwen3-8b", "1b", "tiny")
DEFAULT_SECONDS = 440.0


def main(arguments: Sequence[str]) -> int:
    """Run all checks; the exit status."""
    started = time.monotonic()
    options = parse(arguments)
    if options.device == "cuda" and not has_cuda():
        print("gpu-check needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    find_branchline()
    # Only now: these import the package, which may not be installed.
    from branchline.benchmarks.gpu.plan import sections_for
    from branchline.benchmarks.gpu.report import Report
    from branchline.benchmarks.gpu.sections import Options, run_sections

    chosen = Options(options.device, options.shape, options.full)
    sections = sections_for(chosen, options.only, options.tune)
    command = " ".join(["python", "benchmarks/gpu_check.py", *arguments])
    report = Report(chosen, command, options.json, RESULTS)
    with tempfile.TemporaryDirectory() as directory:
        run_sections(
            sections,
            chosen,
            started + options.seconds,
            Path(directory),
            lambda outcomes: report.write(outcomes, time.monotonic() - started),
        )
    print(report.summary())
    return 0 if report.ok else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; argparse, since a GPU machine may not have click."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="the model that is timed")
    parser.add_argument("--full", action="store_true", help="time every batch, rank and context")
    parser.add_argument("--tune", action="store_true", help="only try LoRA kernels' plans")
    parser.add_argument("--only", action="append", default=[], help="a section; more than once")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="for all of it")
    parser.add_argument("--json", type=Path, help="results file")
    return parser.parse_args(arguments)


def has_cuda() -> bool:
    """Asked of a child: sections are forked, which a process that has met CUDA can't do."""
    child = multiprocessing.get_context("fork").Process(target=_exit_by_cuda)
    child.start()
    child.join()
    return child.exitcode == 0


def _exit_by_cuda() -> None:
    sys.exit(0 if torch.cuda.is_available() else 1)


def find_branchline() -> None:
    """Let ``branchline`` be this repository's root where it is not installed."""
    if importlib.util.find_spec("branchline") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "branchline", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["branchline"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
