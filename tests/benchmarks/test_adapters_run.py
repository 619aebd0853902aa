"""The adapter benchmark as it is run: a small look at all of its cases, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "adapters.py"


@pytest.mark.slow
def test_a_quick_run_answers_everything_rightly_and_writes_its_figures(tmp_path: Path) -> None:
    """Nothing is timed here: answers are right, versions unmixed, memory is back, or it fails."""
    path = tmp_path / "adapters.json"
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--quick", "--json", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text()
    assert "/tmp" not in path.read_text()
    many, churn = found["many"], found["churn"]
    assert many["checked"]["num_adapters"] == 48
    assert many["checked"]["num_answers"] == 48 + 16 + 48
    by_server = {run["server"]: run["device_loads"] for run in many["runs"]}
    assert by_server["16 adapters"] == 0
    assert by_server["48 adapters"] > 0
    assert [phase["num_loads"] > 0 for phase in found["oversubscribed"]["phases"]] == [False, True]
    assert churn["judged"]["num_answers"] > 16
    assert churn["before"]["tiers"] == churn["after"]["tiers"]
    assert set(churn["before"]["tiers"].values()) == {"device"}
    for shape in found["cold"]["shapes"].values():
        assert all(shape[key] > 0 for key in ("put", "disk", "disk_cached", "host", "device"))
