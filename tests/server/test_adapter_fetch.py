"""Fetching from where an adapter lies: files, real HTTP on loopback, a hub and its cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from evil_archives import ADAPTER, COMPRESSIONS, files_below, tar_of, zip_of
from file_server import Answer, FileServer, serve_files

from branchline.lora.errors import AdapterError
from branchline.server.adapters.fetch import fetch
from branchline.server.adapters.sources import AdapterSource, SourcePolicy

INDEX = "adapter_model.safetensors.index.json"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_files() as running:
        yield running


@pytest.fixture
def policy(server: FileServer) -> SourcePolicy:
    return SourcePolicy(prefixes=(f"{server.url}/ok/",), max_bytes=1 << 20, timeout=20.0)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def fetch_url(
    server: FileServer, path: str, policy: SourcePolicy, staging: Path
) -> dict[str, bytes]:
    directory = await fetch(AdapterSource("http", server.url + path), policy, staging)
    assert directory.parent == staging
    return contents(directory)


async def refuse(
    server: FileServer, path: str, policy: SourcePolicy, staging: Path, message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as refused:
        await fetch_url(server, path, policy, staging)
    assert "\n" not in str(refused.value)
    assert files_below(staging) == set()


@pytest.mark.parametrize("body", [zip_of(), tar_of(), COMPRESSIONS["gzip"](tar_of())])
@pytest.mark.parametrize("length", [-1, None])
async def test_an_archive(
    body: bytes, length: int, server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a.zip?sig=1"] = Answer(body, length=length)
    assert await fetch_url(server, "/ok/a.zip?sig=1", policy, tmp_path) == ADAPTER
    assert files_below(tmp_path) == {"adapter", *(f"adapter/{name}" for name in ADAPTER)}
    assert server.requests[0][1]["accept-encoding"] == "identity"


async def test_progress_is_told(server: FileServer, policy: SourcePolicy, tmp_path: Path) -> None:
    body = zip_of()
    server.answers["/ok/a"] = Answer(body)
    told: list[tuple[int, int | None]] = []
    source = AdapterSource("http", f"{server.url}/ok/a")
    await fetch(source, policy, tmp_path, lambda *progress: told.append(progress))
    assert told[-1] == (len(body), len(body))


async def test_a_directory(server: FileServer, policy: SourcePolicy, tmp_path: Path) -> None:
    files = {**ADAPTER, "tokenizer.json": b"{}", "chat_template.jinja": b""}
    for name, body in {**files, "README.md": b"", "adapter_model.bin": b""}.items():
        server.answers[f"/ok/a/{name}?sig=1"] = Answer(body)
    assert await fetch_url(server, "/ok/a/?sig=1", policy, tmp_path) == files
    assert not {path for path in server.paths if "README" in path or ".bin" in path}


async def test_a_directory_with_shards(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    shards = {f"adapter_model-0000{i}-of-00002.safetensors": b"x" * i for i in (1, 2)}
    weight_map = {"a.weight": min(shards), "b.weight": max(shards), "c.weight": min(shards)}
    files = {
        "adapter_config.json": b"{}",
        INDEX: json.dumps({"weight_map": weight_map}).encode(),
        **shards,
    }
    for name, body in files.items():
        server.answers[f"/ok/a/{name}"] = Answer(body)
    assert await fetch_url(server, "/ok/a/", policy, tmp_path) == files


@pytest.mark.parametrize(
    "index",
    [
        b"no json",
        b"[" * 100_000,
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "../../x.safetensors"}}',
        b'{"weight_map": {"a": "adapter_model/x.safetensors"}}',
        b'{"weight_map": {"a": "adapter_model.bin"}}',
        b'{"weight_map": {"a": "http://evil.example/adapter_model.safetensors"}}',
    ],
)
async def test_an_index_that_leads_elsewhere(
    index: bytes, server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a/adapter_config.json"] = Answer(b"{}")
    server.answers[f"/ok/a/{INDEX}"] = Answer(index)
    await refuse(
        server, "/ok/a/", policy, tmp_path, f"^{INDEX}: .*(names|must hold|not JSON|plain)"
    )
    assert len(server.requests) == 3


async def test_a_directory_without_weights(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    await refuse(server, "/ok/a/", policy, tmp_path, "adapter_config.json answers 404")
    server.answers["/ok/a/adapter_config.json"] = Answer(b"{}")
    await refuse(server, "/ok/a/", policy, tmp_path, "has neither adapter_model.safetensors nor")
    server.answers["/ok/a/adapter_model.safetensors"] = Answer(status=403)
    await refuse(server, "/ok/a/", policy, tmp_path, "answers 403")


async def test_redirects_within_the_policy(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a"] = Answer(status=302, headers={"location": "b"})
    server.answers["/ok/b"] = Answer(status=307, headers={"location": f"{server.url}/ok/c?x=1#y"})
    server.answers["/ok/c?x=1"] = Answer(zip_of())
    assert await fetch_url(server, "/ok/a", policy, tmp_path) == ADAPTER
    assert server.paths == ["/ok/a", "/ok/b", "/ok/c?x=1"]


@pytest.mark.parametrize(
    "location",
    [
        "/secret",
        "../secret",
        "/ok/../secret",
        "/ok/%2e%2e/secret",
        "http://localhost:1/ok/a",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "//evil.example/ok/a",
        "http://[bad",
    ],
)
async def test_redirects_out_of_the_policy(
    location: str, server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a"] = Answer(status=302, headers={"location": location})
    server.answers["/secret"] = Answer(zip_of())
    await refuse(server, "/ok/a", policy, tmp_path, "^source: ")
    assert server.paths == ["/ok/a"]


async def test_redirects_in_a_circle(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a"] = Answer(status=302, headers={"location": "/ok/a"})
    await refuse(server, "/ok/a", policy, tmp_path, "redirects more than 5 times")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=404), "/ok/a answers 404: it is not there"),
        (Answer(status=500), "/ok/a answers 500"),
        (Answer(status=204, length=None), "/ok/a answers 204"),
        (Answer(b""), "archive: is empty"),
        (Answer(b"<html>"), "archive: is neither a zip nor a tar"),
        (Answer(zip_of(), length=10**6), "peer closed connection"),
        (Answer(zip_of()[:-50], length=None), "archive: can't be read"),
        (Answer(length=(1 << 20) + 1), "is larger than 1048576 bytes"),
        (Answer(bytes(3 << 20), length=None), "is larger than 1048576 bytes"),
        (Answer(b"x", headers={"content-encoding": "gzip"}), "content-encoding 'gzip'"),
        (Answer(zip_of({**ADAPTER, "tokenizer.json": bytes(2 << 20)})), "unpacks to more than"),
    ],
)
async def test_bad_answers(
    answer: Answer, message: str, server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a?key=secret"] = answer
    await refuse(server, "/ok/a?key=secret", policy, tmp_path, message)


async def test_all_files_of_a_directory_count_together(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    for name in (*ADAPTER, "tokenizer.json"):
        server.answers[f"/ok/a/{name}"] = Answer(bytes(400_000))
    await refuse(server, "/ok/a/", policy, tmp_path, "is larger than 1048576 bytes")


async def test_a_body_that_stops_coming(
    server: FileServer, policy: SourcePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/ok/a"] = Answer(b"PK", length=1000, hang=True)
    in_time = replace(policy, timeout=0.2)
    await refuse(server, "/ok/a", in_time, tmp_path, r"/ok/a was not here within 0\.2 s")
    monkeypatch.setattr("branchline.server.adapters.fetch.IDLE_SECONDS", 0.1)
    await refuse(server, "/ok/a", policy, tmp_path, "gave nothing for")


async def test_cancelled_while_it_comes(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    server.answers["/ok/a"] = Answer(b"PK", length=1000, hang=True)
    begun = asyncio.Event()
    source = AdapterSource("http", f"{server.url}/ok/a")
    task = asyncio.create_task(fetch(source, policy, tmp_path, lambda *_: begun.set()))
    await begun.wait()
    assert files_below(tmp_path) == {"archive"}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_below(tmp_path) == set()


async def test_nobody_answers(tmp_path: Path) -> None:
    policy = SourcePolicy(prefixes=("http://127.0.0.1:1/",))
    with pytest.raises(AdapterError, match=r"source: http://127\.0\.0\.1:1/a "):
        await fetch(AdapterSource("http", "http://127.0.0.1:1/a"), policy, tmp_path)


async def test_the_policy_holds_when_it_is_fetched(
    server: FileServer, policy: SourcePolicy, tmp_path: Path
) -> None:
    await refuse(server, "/not-ok/a", policy, tmp_path, "is not allowed")
    assert not server.requests
    with pytest.raises(AdapterError, match="is not allowed"):
        await fetch(AdapterSource("hub", "hf://org/name"), policy, tmp_path)
    with pytest.raises(AdapterError, match="must be uploaded again"):
        await fetch(AdapterSource("upload", "a.zip"), policy, tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root" / "adapter"
    directory.mkdir(parents=True)
    for name, body in ADAPTER.items():
        (directory / name).write_bytes(body)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("")
    return tmp_path / "root"


async def test_a_local_directory_stays_where_it_is(root: Path, tmp_path: Path) -> None:
    source, policy = AdapterSource("directory", f"{root}/adapter"), SourcePolicy((str(root),))
    assert await fetch(source, policy, tmp_path) == root / "adapter"
    (root / "adapter" / "tokenizer.json").symlink_to(root / "adapter" / "adapter_config.json")
    assert await fetch(source, policy, tmp_path) == root / "adapter"


async def test_links_that_lead_out_of_a_local_directory(root: Path, tmp_path: Path) -> None:
    source, policy = AdapterSource("directory", f"{root}/adapter"), SourcePolicy((str(root),))
    (root / "adapter" / "tokenizer.json").symlink_to(tmp_path / "outside" / "secret")
    with pytest.raises(AdapterError, match=r"tokenizer\.json: is a link that leads out"):
        await fetch(source, policy, tmp_path)
    (root / "adapter").rename(root / "moved")
    (root / "adapter").symlink_to(tmp_path / "outside")
    with pytest.raises(AdapterError, match="is under no allowed directory"):
        await fetch(source, policy, tmp_path)
