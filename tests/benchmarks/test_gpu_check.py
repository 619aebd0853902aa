"""`make gpu-check`, tried out on the CPU: it runs, finds faults, and says when there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from branchline.benchmarks import gpu_check
from branchline.benchmarks.gpu.ops import CASES, DTYPES, check_ops
from branchline.kernels import ops

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def test_every_op_holds_on_the_host_in_every_dtype() -> None:
    results = check_ops(torch.device("cpu"))
    assert len(results) == len(CASES) * len(DTYPES)
    assert [result for result in results if not result.ok] == []


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("rms_norm", lambda x, weight, eps, offset=0.0: x * weight),
        ("gated_activation", lambda gate_up, activation: gate_up.chunk(2, -1)[0]),
        ("kv_write", lambda k, v, cache, slot_mapping: None),
        ("paged_attention", lambda q, *rest: torch.full_like(q, float("nan"))),
        ("apply_rope", lambda heads, cos, sin: None),
        ("expand", lambda hidden, b_pages, slice_sizes, routing, y: None),
        ("sample_tokens", lambda logits, top_ids, *rest: top_ids + (logits[0, 0] > 9)),
    ],
)
def test_a_broken_op_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: object) -> None:
    if name == "sample_tokens":
        good, calls = ops.sample_tokens, iter((1, 0))
        broken = lambda *args: good(*args) + next(calls)  # noqa: E731
    monkeypatch.setattr(ops, name, broken)
    cases = {"sampling": CASES["sampling"]} if name == "sample_tokens" else CASES
    monkeypatch.setattr("branchline.benchmarks.gpu.ops.CASES", cases)
    monkeypatch.setattr("branchline.benchmarks.gpu.ops.DTYPES", (torch.float32,))
    assert not all(result.ok for result in check_ops(torch.device("cpu")))


def test_the_dry_run_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    assert gpu_check.main(["--device", "cpu", "--tiny", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["ok"] is True
    assert document["agreement"] == 1
    runs = document["decode"]["runs"]
    assert runs[0]["traffic"] == "base, no adapters loaded"
    assert len(runs) == 4
    assert all(run["tokens_per_second"] > 0 for run in runs)


def test_without_cuda_it_is_one_line_and_status_2() -> None:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "gpu-check needs a CUDA device, and torch sees none"


def test_it_finds_the_package_where_nothing_is_installed() -> None:
    code = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        f"names = runpy.run_path({str(SCRIPT)!r}, run_name='gpu_check')\n"
        "assert find('branchline') is None\n"
        "names['find_branchline']()\n"
        "from branchline.kernels import ops\n"
        "from branchline.benchmarks.gpu.decode import agreement\n"
        "print(ops.__file__)\n"
        "print([name for name in ('click', 'msgspec', 'zmq', 'peft') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, heavy = done.stdout.splitlines()
    assert file == str(ROOT / "kernels" / "ops.py")
    assert heavy == "[]"
