"""A server whose adapters are in 8 bits, over real HTTP: right answers, half the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_server import AdapterServer, serve_adapters
from oracle import Reference
from rounded_reference import rounded_adapter
from server_process import wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model
from versions_house import VersionsHouse

from branchline.engine.adapter_format import FormatJob, format_adapter

pytestmark = pytest.mark.timeout(120)


def test_adapters_in_8_bits(tmp_path: Path) -> None:
    """Formatted anew by a server that starts without the flag on what one with it has left."""
    root = tmp_path.resolve()
    model = make_tiny_model(root / "model", "llama", max_position_embeddings=4096)
    source = make_adapter(model, root / "source" / "one", 16, seed=4)
    rounded = rounded_adapter(source, root / "rounded")
    names = {"exact": source, "rounded": rounded}
    reference = Reference(model, names)
    half = format_adapter(FormatJob(str(model), "bfloat16", str(source), str(root / "bf16")))
    flags = ("--state-dir", str(root / "state"))
    with serve_adapters(model, *flags, "--adapter-dtype", "fp8", roots=[source.parent]) as server:
        house = VersionsHouse(server, model, names, reference)
        house.put("legal", "exact")
        house.ask("legal", "rounded")
        house.ask("base", None)
        in_8_bits = device_bytes(server)
        assert 0.5 < in_8_bits / half.device_bytes < 0.56, "scales are large beside tiny pages"
        assert server.used()["device"] == in_8_bits
    with serve_adapters(model, *flags, roots=[source.parent]) as server:
        house = VersionsHouse(server, model, names, reference)
        wait_for(lambda: "legal" in server.models(), 10)
        house.ask("legal", "exact")
        assert device_bytes(server) == 2 * half.device_bytes, "float32 again"


def device_bytes(server: AdapterServer) -> int:
    """What the one adapter takes, as admins are told."""
    [entry] = server.http.get("/admin/adapters").json()["adapters"]
    assert entry["tier"] == "device"
    return int(entry["bytes"]["device"])
