"""``branchline adapter`` against a real server on a socket: its words, its JSON, its refusals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import uvicorn
from click.testing import CliRunner, Result
from fake_manager import FakeAdapters

from branchline.cli import cli
from branchline.server.adapters.alias_cli import parse_target
from branchline.server.adapters.pack import Upload
from branchline.server.adapters.tables import adapter_table, number_of_bytes
from branchline.server.text.tokenizer import Tokenizer

from .adapter_house import build

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 1000}


@dataclass
class Served:
    """A server, and its adapters."""

    url: str
    adapters: FakeAdapters
    root: Path

    def run(self, *words: str, key: str | None = "a1") -> Result:
        environment = {"BRANCHLINE_URL": self.url, "BRANCHLINE_ADMIN_KEY": key}
        return CliRunner().invoke(cli, ["adapter", *words], env=environment)

    def say(self, *words: str) -> str:
        """What a command that works prints."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def fail(self, *words: str, key: str | None = "a1") -> str:
        """The message of a command that fails."""
        result = self.run(*words, key=key)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        return result.stderr.removeprefix("Error: ").strip()


@pytest.fixture
def served(tokenizer: Tokenizer, tmp_path: Path) -> Iterator[Served]:
    app, _, adapters = build(tokenizer, tmp_path)
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", adapters, tmp_path)
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_life_of_an_adapter(served: Served) -> None:
    source = str(served.root / "one")
    assert served.say("put", "acme/legal", source, "--pin", "host").startswith(
        "acme/legal is version 1, digest "
    )
    assert "already was version 1" in served.say("put", "acme/legal", source)
    assert "is version 2" in served.say("put", "acme/legal", str(served.root / "two"))
    listed = served.say("list").splitlines()
    assert listed[0].split() == (
        ["NAME", "VER", "DIGEST", "RANK", "SIZE", "TIER", "PIN", "LEASES", "LOADS", "IDLE"]
    )
    assert listed[1].split()[:2] == ["acme/legal", "2"]
    assert "2.0 MB" in listed[1]
    details = served.say("get", "acme/legal")
    assert f"source:    directory {served.root / 'two'}" in details
    assert "modules:   q_proj v_proj" in details
    assert "tier host, pin none" in served.say("load", "acme/legal", "--tier", "host")
    assert "tier device, pin device" in served.say("pin", "acme/legal")
    assert "pin none" in served.say("unpin", "acme/legal")
    assert "tier disk" in served.say("evict", "acme/legal", "--tier", "host")
    assert "version 1" in served.say("rollback", "acme/legal")
    versions = served.say("versions", "acme/legal").splitlines()
    assert versions[1].split()[:2] == ["1", "*"]
    assert len(versions) == 3
    assert served.say("delete", "acme/legal", "--wait", "1") == (
        "acme/legal is removed; free again: 2.0 MB on device, 1.5 MB on host\n"
    )
    assert served.adapters.waits == [1.0]
    assert len(served.say("list").splitlines()) == 1


def test_a_removal_that_waits_for_requests(served: Served) -> None:
    served.say("put", "legal", str(served.root / "one"))
    served.adapters.num_requests["legal"] = 2
    assert "2 requests still hold" in served.say("delete", "legal")


def test_aliases(served: Served) -> None:
    for source in ("one", "two"):
        served.say("put", "legal", str(served.root / source))
    assert served.say("alias", "set", "prod", "legal,1").splitlines()[1].split() == [
        "prod",
        "legal,1",
    ]
    split = served.say("alias", "set", "prod", "legal,1=92.5", "legal,2=7.5")
    assert split.splitlines()[1] == "prod   legal,1=92.5 legal,2=7.5"
    assert served.say("alias", "list") == split
    assert served.say("alias", "rollback", "prod").splitlines()[1].split() == ["prod", "legal,1"]
    assert served.say("alias", "delete", "prod") == "prod is removed\n"
    assert "no alias 'prod'" in served.fail("alias", "delete", "prod")
    assert "sum to 50" in served.fail("alias", "set", "prod", "legal=50")


def test_json_is_the_servers(served: Served) -> None:
    made = json.loads(served.say("put", "legal", str(served.root / "one"), "--json"))
    assert (made["changed"], made["adapter"]["name"]) == (True, "legal")
    assert json.loads(served.say("get", "legal", "--json")) == made["adapter"]
    assert json.loads(served.say("list", "--json")) == {"adapters": [made["adapter"]]}
    assert json.loads(served.say("alias", "list", "--json")) == {"aliases": []}


def test_a_long_list_comes_in_pages(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("branchline.server.adapters.cli.PAGE", 2)
    for name in "abcde":
        served.say("put", name, str(served.root / "one"))
    listed = json.loads(served.say("list", "--json"))["adapters"]
    assert [entry["name"] for entry in listed] == list("abcde")


def test_a_directory_is_sent(served: Served, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for name, content in FILES.items():
        (local / name).write_bytes(content)
    (local / "optimizer.pt").write_bytes(b"a trainer's own")
    (local / "checkpoint-5").mkdir()
    result = served.run("put", "legal", str(local), "--upload", "--pin", "host")
    assert (result.exit_code, result.stderr) == (0, ""), "no bar where there is no terminal"
    assert served.adapters.uploads == [FILES]
    assert "\npin:       host\n" in served.say("get", "legal")


def test_who_waits_at_a_terminal_sees_how_far_it_is(served: Served, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = ["adapter", "put", "legal", str(tmp_path), "--upload", "--url", served.url]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "branchline", *words],
        env=os.environ | {"BRANCHLINE_ADMIN_KEY": "a1"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
    )
    os.close(terminal)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "upload: 100%" in shown
    assert shown.rstrip().endswith("the server checks it …")
    assert done.stdout.startswith(b"legal is version 1")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar", ".zip"])
def test_an_archive_is_sent(served: Served, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"adapter{suffix}"
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in FILES:
                archive.write(tmp_path / name, name)
    else:
        with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as tar:
            for name in FILES:
                tar.add(tmp_path / name, name)
    served.say("put", "legal", str(path), "--upload")
    assert served.adapters.uploads == [FILES]


def test_a_tar_is_as_long_as_announced(tmp_path: Path) -> None:
    shard = f"adapter_model-{'é' * 60}.safetensors"
    sizes = {"adapter_config.json": 0, shard: 512, "adapter_model.safetensors": 513}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    upload = Upload.of(tmp_path)
    sent = b"".join(upload.read())
    assert len(sent) == upload.num_bytes
    (tmp_path / "out.tar").write_bytes(sent)
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert {info.name: info.size for info in tar} == sizes


def test_a_file_that_grows_while_it_is_sent_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 100)
    upload = Upload.of(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 101)
    with pytest.raises(click.ClickException, match="changed while it was sent"):
        list(upload.read())


def test_refusals_are_one_line(served: Served, tmp_path: Path) -> None:
    assert served.fail("get", "gone") == "There is no adapter 'gone'."
    assert "is under no allowed directory" in served.fail("put", "legal", "/etc")
    assert "no name of an adapter" in served.fail("get", "../../etc")
    assert "there is no" in served.fail("put", "legal", str(tmp_path / "no"), "--upload")
    assert "holds no adapter_model.safetensors" in served.fail(
        "put", "x", str(tmp_path), "--upload"
    )
    nobody = served.run("list", "--url", "http://127.0.0.1:9")
    assert nobody.exit_code == 1
    assert "no server at http://127.0.0.1:9" in nobody.stderr
    wrong = served.run("alias", "set", "prod", "a=60", "b")
    assert wrong.exit_code == 2
    for output in (nobody.stderr, served.fail("get", "gone")):
        assert len(output.strip().splitlines()) == 1


def test_the_key_is_never_shown(served: Served) -> None:
    assert "admin key is needed" in served.fail("list", key="wrong-secret")
    assert "admin key is needed" in served.fail("list", key=None)
    for key in ("wrong-secret", "sécret-é", "bad\nsecret", "bad\x00secret"):
        result = served.run("list", "--admin-key", key)
        assert result.exit_code == 1
        assert key not in result.output
        assert "secret" not in result.output
    assert served.run("list", key="a1,other").exit_code == 0, "as the server reads the variable"
    with_password = served.run("list", "--url", "http://me:hidden@127.0.0.1:9")
    assert "hidden" not in with_password.output


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("legal", ("legal", None, 100.0)),
        ("acme/legal,3", ("acme/legal", 3, 100.0)),
        ("a@3=50", ("a@3", None, 50.0)),
        ("a:b,12=0.5", ("a:b", 12, 0.5)),
    ],
)
def test_targets(text: str, target: tuple[str, int | None, float]) -> None:
    assert tuple(parse_target(text, is_only=True).values()) == target


@pytest.mark.parametrize("text", ["", "a=", "a,=5", "a,b", "=5", "a=nan", "a=-1"])
def test_no_targets(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse_target(text, is_only=True)


def test_the_table_fits_a_hundred_columns() -> None:
    entry = {
        "name": "a-team/with-a-very-long-name-for-its-adapter/v12",
        "version": 123,
        "digest": "0123456789abcdef",
        "rank": 512,
        "bytes": {"device": 1_234_567_890},
        "tier": "device",
        "pin": "device",
        "is_loading": True,
        "leases": 1234,
        "loads": 123456,
        "last_used": 1000.0,
        "error": "broken",
    }
    lines = adapter_table([entry, entry | {"error": None}], now=1000.0 + 100 * 60).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].startswith("a-team/with-a-very-long-n… !")
    assert lines[1].endswith("100 min")
    assert len(adapter_table([]).splitlines()) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (99_960, "100 KB"), (999_999_999, "1.0 GB")],
)
def test_numbers_of_bytes(count: int, text: str) -> None:
    assert number_of_bytes(count) == text
