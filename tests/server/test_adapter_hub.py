"""Adapters from the hub: out of its cache, and downloaded from one on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from evil_archives import ADAPTER
from fake_hub import lay_out_cache, serve_repository
from file_server import Answer, FileServer, serve_files

from branchline.lora.errors import AdapterError
from branchline.lora.files import config_file, weights_files
from branchline.server.adapters.fetch import fetch
from branchline.server.adapters.hub import find_cached, is_offline
from branchline.server.adapters.sources import AdapterSource, SourcePolicy

HUB = AdapterSource("hub", "hf://org/name")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as running:
        yield running


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


async def test_the_hubs_cache_works_offline(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_offline()
    snapshot = lay_out_cache(hub_cache, "org/name", ADAPTER)
    lay_out_cache(hub_cache, "org/name", {"adapter_config.json": b"old"}, "f" * 40, "v1")
    policy = SourcePolicy(prefixes=("hf://org",))
    directory = await fetch(HUB, policy, tmp_path)
    assert directory == snapshot
    assert config_file(directory).read_bytes() == ADAPTER["adapter_config.json"]
    weights = weights_files(directory)["adapter_model.safetensors"]
    assert weights.read_bytes() == ADAPTER["adapter_model.safetensors"]
    old = await fetch(AdapterSource("hub", "hf://org/name@v1"), policy, tmp_path)
    assert config_file(old).read_bytes() == b"old"
    for missing in ("hf://org/other", "hf://org/name@v2"):
        with pytest.raises(AdapterError, match="is not in the hub's cache"):
            await fetch(AdapterSource("hub", missing), policy, tmp_path)


@pytest.fixture
def hub(server: FileServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A hub that the process which downloads takes for the real one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


async def test_a_download_from_the_hub(hub: FileServer, hub_cache: Path, tmp_path: Path) -> None:
    others = {"README.md": b"", "adapter_model.bin": b"", "optimizer.pt": b""}
    serve_repository(hub, "org/name", {**ADAPTER, **others})
    policy = SourcePolicy(prefixes=("hf://org",), timeout=60.0)
    directory = await fetch(HUB, policy, tmp_path)
    assert contents(directory) == ADAPTER
    assert find_cached("org/name", None, ()) == str(directory)
    hub.answers.clear()
    assert await fetch(HUB, policy, tmp_path) == directory


@pytest.mark.parametrize("kind", ["too large", "no adapter", "not there", "hangs"])
async def test_bad_answers_of_the_hub(
    kind: str, hub: FileServer, hub_cache: Path, tmp_path: Path
) -> None:
    policy = SourcePolicy(prefixes=("hf://org",), max_bytes=1 << 20, timeout=60.0)
    match kind:
        case "too large":
            sizes = {"adapter_model.safetensors": 2 << 20}
            serve_repository(hub, "org/name", ADAPTER, sizes)
            message = "bytes of adapter files, at most 1048576 are fetched"
        case "no adapter":
            serve_repository(hub, "org/name", {"README.md": b""})
            message = "holds no adapter"
        case "not there":
            message = "org/name is not in the hub's cache; the hub: .*404"
        case _:
            hub.answers["/api/models/org/name"] = Answer(length=10, hang=True)
            hub.answers["/api/models/org/name/revision/main"] = Answer(length=10, hang=True)
            policy = replace(policy, timeout=1.0)
            message = r"hf://org/name was not here within 1 s"
    with pytest.raises(AdapterError, match=message) as refused:
        await fetch(HUB, policy, tmp_path)
    assert "\n" not in str(refused.value)
    assert not list(hub_cache.rglob("*.safetensors"))
    assert not list(hub_cache.rglob("*.incomplete"))
