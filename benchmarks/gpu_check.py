"""Everything that only a GPU can show, in one command: ``make gpu-check``.

Checks each op on the device in float32, float16 and bfloat16 against float64, the engine's
tokens against the host's, and times a decode of a random model of Llama-3.2-1B's shape through
the in-process engine. Needs torch with CUDA, numpy and safetensors, and no installed package.
Exit status: 0 all as it should be, 1 something is not, 2 no CUDA device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from branchline.benchmarks.gpu.decode import DecodeResult
    from branchline.benchmarks.gpu.ops import OpResult

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str]) -> int:
    """Run all checks; the exit status."""
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    find_branchline()
    # Only now: these import the package, which may not be installed.
    from branchline.benchmarks.gpu.checkpoints import ONE_BILLION, TINY
    from branchline.benchmarks.gpu.decode import Load, agreement, decode_speed
    from branchline.benchmarks.gpu.ops import check_ops

    shape, load = (TINY, Load(4, 16, 8)) if options.tiny else (ONE_BILLION, Load(64, 512, 64))
    dtype: Literal["float32", "bfloat16"] = "float32" if options.tiny else "bfloat16"
    op_results = check_ops(torch.device(options.device))
    print_ops(op_results)
    with tempfile.TemporaryDirectory() as directory:
        share = agreement(options.device, Path(directory))
        print(f"\nmixed batch, float32: {share:.0%} of the requests have the host's tokens\n")
        speeds = decode_speed(shape, load, options.device, dtype, Path(directory))
    print_speeds(shape.name, dtype, speeds)
    ok = all(result.ok for result in op_results) and share == 1
    document = {
        **facts(options.device),
        "ok": ok,
        "ops": [asdict(result) for result in op_results],
        "agreement": share,
        "decode": {"shape": asdict(shape), "dtype": dtype, "runs": [asdict(s) for s in speeds]},
    }
    path = options.json or RESULTS / f"gpu-{slug(card(options.device))}-{today()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{'all checks hold' if ok else 'CHECKS FAILED'}; written to {path}")
    return 0 if ok else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; argparse, since a GPU machine may not have click."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape: tries this script out")
    parser.add_argument("--json", type=Path, help="results file")
    return parser.parse_args(arguments)


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


def card(device: str) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def slug(name: str) -> str:
    """A name fit for a file: lower case, dashes."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def facts(device: str) -> dict[str, object]:
    """What the figures depend on besides the code."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": today(),
        "card": card(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "system": platform.platform(),
    }


def print_ops(results: Sequence[OpResult]) -> None:
    """One line an op: its error in each dtype, marked where it is over the tolerance."""
    dtypes = list(dict.fromkeys(result.dtype for result in results))
    names = list(dict.fromkeys(result.name for result in results))
    print(f"{'error against float64':<28}" + "".join(f"{dtype:>14}" for dtype in dtypes))
    for name in names:
        row = [result for result in results if result.name == name]
        print(f"{name:<28}" + "".join(f"{r.error:>12.1e}{' ' if r.ok else '!':<2}" for r in row))


def print_speeds(shape: str, dtype: str, speeds: Sequence[DecodeResult]) -> None:
    """Step time and throughput of each kind of traffic, and its share of the first."""
    print(f"{shape}, {dtype}, {speeds[0].batch_size} at once, context {speeds[0].context}")
    print(f"{'':<28}{'ms/step':>10}{'tokens/s':>12}{'of base':>10}")
    for speed in speeds:
        share = speed.tokens_per_second / speeds[0].tokens_per_second
        rates = f"{speed.step_ms:>10.2f}{speed.tokens_per_second:>12.0f}{share:>10.3f}"
        print(f"{speed.traffic:<28}{rates}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
