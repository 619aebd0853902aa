"""`make gpu-check`, tried out on the CPU: it runs, finds faults, and says when there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from branchline.benchmarks.gpu import (
    harness,
    ops_attention,
    ops_fp8,
    ops_lora,
    ops_sampling,
    ops_small,
)
from branchline.benchmarks.gpu.bench import DTYPES, Case, check_cases
from branchline.benchmarks.gpu.checkpoints import EIGHT_BILLION, write_config
from branchline.benchmarks.gpu.decode import Model, build_model, open_harness
from branchline.benchmarks.gpu.harness import random_bytes
from branchline.benchmarks.gpu.machine import BANDWIDTH
from branchline.benchmarks.gpu.sections import Options, Record, Run, read_records
from branchline.engine.models.config import ModelConfig
from branchline.engine.models.decoder import Decoder
from branchline.kernels import ops

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
# What a GPU machine may not have.
ABSENT = (
    *("msgspec", "zmq", "click", "pydantic", "fastapi", "starlette", "uvicorn", "redis"),
    *("tokenizers", "transformers", "peft", "httpx"),
)


def checked(
    tmp_path: Path, cases: dict[str, Case], dtypes: Iterable[torch.dtype] = DTYPES
) -> list[Record]:
    """What the checks of these cases say."""
    run = Run(Options("cpu", "tiny"), time.monotonic() + 100, {}, tmp_path / "records")
    check_cases(run, cases, tuple(dtypes))
    return read_records(run.path)


@pytest.mark.parametrize("area", [ops_small, ops_attention, ops_lora, ops_fp8])
def test_every_op_holds_on_the_host_in_every_dtype(tmp_path: Path, area: Any) -> None:
    records = checked(tmp_path, area.CASES)
    assert len(records) == len(area.CASES) * len(DTYPES)
    assert [record for record in records if not record["ok"]] == []


def test_sampling_holds_on_the_host(tmp_path: Path) -> None:
    records = checked(tmp_path, ops_sampling.CASES, [torch.float32])
    assert len(records) == len(ops_sampling.CASES)
    assert [record for record in records if not record["ok"]] == []


def nothing(*args: object) -> None:
    """An op that leaves what it should write as it is."""


def off_by_one_row(*args: Any) -> torch.Tensor:
    tokens: torch.Tensor = REAL["sample_tokens"](*args)
    return tokens.roll(1)


def without_the_last_key(q: Any, cache: Any, metadata: Any, *rest: Any) -> Any:
    real = REAL["paged_attention"](q, cache, metadata, *rest)
    real[-1] = q[-1]
    return real


def saturated(weight: torch.Tensor) -> Any:
    good = REAL["quantize_weight"](weight)
    return ops.Fp8Weight(good.values, good.scales * 1.5)


REAL: dict[str, Callable[..., Any]] = {
    name: getattr(ops, name) for name in ("sample_tokens", "paged_attention", "quantize_weight")
}
BROKEN: list[tuple[Any, str, Callable[..., object]]] = [
    (ops_small, "rms_norm", lambda x, weight, eps, offset=0.0: x * weight),
    (ops_small, "fused_add_rms_norm", lambda x, residual, weight, eps: (x, x + residual)),
    (ops_small, "gated_activation", lambda gate_up, activation: gate_up.chunk(2, -1)[0]),
    (ops_small, "scale_rows", nothing),
    (ops_small, "norm_rows", nothing),
    (ops_attention, "rope_and_kv_write", nothing),
    (ops_attention, "paged_attention", lambda q, *rest: torch.full_like(q, float("nan"))),
    (ops_attention, "paged_attention", without_the_last_key),
    (ops_lora, "expand", nothing),
    (ops_lora, "expand", lambda hidden, b, sizes, routing, y: y.add_(1e-3)),
    (ops_fp8, "quantize_weight", saturated),
    (ops_sampling, "sample_tokens", off_by_one_row),
    (ops_sampling, "filter_floors", lambda logits, *rest: logits.amin(1).double()),
    (ops_sampling, "edit_logits", nothing),
]


@pytest.mark.parametrize(("area", "name", "broken"), BROKEN)
def test_a_broken_op_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    area: Any,
    name: str,
    broken: Callable[..., object],
) -> None:
    monkeypatch.setattr(ops, name, broken)
    assert not all(record["ok"] for record in checked(tmp_path, area.CASES, [torch.float32]))


def test_an_op_that_raises_is_wrong_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(ops, "scale_rows", fails)
    records = checked(tmp_path, ops_small.CASES, [torch.float32])
    wrong = [record for record in records if not record["ok"]]
    assert [record["name"] for record in wrong] == ["scale_rows, float32"]
    assert "out of shared memory" in str(wrong[0]["exception"])
    assert len(records) == len(ops_small.CASES)


def run_without(absent: Iterable[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a GPU machine runs it: nothing installed but what it says it needs."""
    code = (
        "import runpy, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        f"sys.modules.update(dict.fromkeys({tuple(absent)!r}))\n"
        f"sys.argv = [{str(SCRIPT)!r}, *{arguments!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True
    )


def test_the_rehearsal_goes_through_every_section(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    done = run_without(ABSENT, *("--device", "cpu", "--shape", "tiny", "--json", str(path)))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    assert document["ok"] is True
    sections = document["sections"]
    assert {section["status"] for section in sections.values()} == {"done"}
    notes = [r["text"] for s in sections.values() for r in s["records"] if r["kind"] == "note"]
    assert notes == ["not installed: transformers, peft"]
    figures = {
        record["name"]: record["value"]
        for section in sections.values()
        for record in section["records"]
        if record["kind"] == "figure"
    }
    assert all(value > 0 for name, value in figures.items() if "added to" not in name)
    for name in (
        "decode B=4 L=20, base: share of the byte limit",
        "decode B=4 L=20, base, adapters loaded: throughput of base",
        "decode B=4 L=20, 4 x r32: throughput of base",
        "decode B=4 L=20, 4 x r16, eager: throughput of base",
        "decode B=4 L=20, 8 bits, 4 x r16: throughput of base",
        "prefill 32 tokens, 4 x r16: throughput of base",
        "hot load of r16: from host memory to ready, median",
    ):
        assert name in figures
    assert len([r for r in sections["tokens"]["records"] if r["kind"] == "check"]) == 6
    assert document["goals"] == []  # those are of another model on another device
    assert "not measured" in done.stdout


def test_the_rehearsal_measures_transformers_and_peft(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    only = ("--only", "peer", "--json", str(path))
    done = run_without(["msgspec"], *("--device", "cpu", "--shape", "tiny", *only))
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(path.read_text())["sections"]["peer"]["records"]
    names = [record["name"] for record in records if record["kind"] == "figure"]
    assert len([name for name in names if name.endswith("transformers")]) == 2
    assert len([name for name in names if name.endswith("ours")]) == 2


def test_without_graphs_steps_are_timed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = harness.assemble_engine

    def fails(config: Any, *rest: Any) -> Any:
        if not config.enforce_eager:
            raise RuntimeError("operation not permitted when stream is capturing")
        return real(config, *rest)

    monkeypatch.setattr(harness, "assemble_engine", fails)
    run = Run(Options("cpu", "tiny"), time.monotonic() + 100, {BANDWIDTH: 1.0}, tmp_path / "r")
    model = build_model(run)
    with open_harness(run, model.decoder, harness.Room(2, 20)) as opened:
        assert opened.time(opened.decode(20, [None, None]), 2).median > 0
    (record,) = [r for r in read_records(run.path) if r["kind"] == "check"]
    assert record["name"] == "graphs"
    assert record["ok"] is False


def test_without_cuda_it_is_one_line_and_status_2() -> None:
    done = run_without([])
    assert done.returncode == 2
    assert done.stderr.strip() == "gpu-check needs a CUDA device, and torch sees none"


def test_the_byte_limit_is_that_of_the_documents(tmp_path: Path) -> None:
    """Llama-3.1-8B, 64 requests of 2,048 keys, 4.3 TB/s: docs/performance.md has this table."""
    config = ModelConfig.from_directory(write_config(EIGHT_BILLION, tmp_path, torch.bfloat16))
    decoder = cast("Decoder", SimpleNamespace(config=config, dtype=torch.bfloat16))
    assert random_bytes(decoder, 16) == 16 * 5_242_880
    inputs = 6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096
    weight_bytes = 2 * (32 * inputs + 128_256 * 4096)
    model = Model(decoder, weight_bytes, 4.3e12)
    base = model.limit(64, 2048, 0, 2)
    assert base == pytest.approx(7.486e-3, rel=1e-3)
    distinct = {
        number * rank: base / model.limit(64, 2048, number * random_bytes(decoder, rank), 2)
        for number, rank in ((1, 16), (64, 16), (64, 64))
    }
    assert distinct == pytest.approx({16: 0.997, 1024: 0.857, 4096: 0.600}, abs=5e-4)
