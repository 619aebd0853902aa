"""``branchline tenant`` against a real server on a socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from click.testing import CliRunner, Result
from store_house import gateway_store
from tenant_house import Clock, tenant_app

from branchline.cli import cli


@dataclass
class Served:
    url: str

    def run(self, *words: str) -> Result:
        environment = {"BRANCHLINE_URL": self.url, "BRANCHLINE_ADMIN_KEY": "a-key"}
        return CliRunner().invoke(cli, ["tenant", *words], env=environment)

    def say(self, *words: str) -> str:
        """What a command that works prints."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout.rstrip("\n")

    def json(self, *words: str) -> dict:
        return json.loads(self.say(*words, "--json"))

    def fail(self, *words: str, status: int = 1) -> str:
        """The message of a command that fails."""
        result = self.run(*words)
        assert result.exit_code == status, result.output
        assert result.stdout == ""
        return result.output


class _Server(threading.Thread):
    """A uvicorn over a store of its own, in a thread with its own loop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.http: uvicorn.Server | None = None

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with gateway_store(None) as store:
            app = tenant_app(store, Clock())
            config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
            self.http = uvicorn.Server(config)
            await self.http.serve()

    @property
    def port(self) -> int:
        deadline = time.monotonic() + 10
        while self.http is None or not self.http.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.http.servers[0].sockets[0].getsockname()[1]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = _Server()
    server.start()
    yield Served(f"http://127.0.0.1:{server.port}")
    assert server.http is not None
    server.http.should_exit = True
    server.join(10)


def test_put_show_update_list_delete(served: Served) -> None:
    words = ("--model", "legal=acme-legal", "--model", "base", "--group", "ten", "--weight", "2")
    said = served.say("put", "acme", *words, "--requests-per-minute", "60")
    assert "legal=acme-legal base=base" in said
    entry = served.json("show", "acme")
    assert entry["models"] == {"legal": "acme-legal", "base": "base"}
    assert entry["limits"]["requests_per_minute"] == 60
    served.say("put", "acme", "--update", "--priority", "-2", "--requests-per-minute", "none")
    entry = served.json("show", "acme")
    assert (entry["weight"], entry["priority"], entry["group"]) == (2, -2, "ten")
    assert entry["limits"]["requests_per_minute"] is None
    served.say("put", "acme", "--update", "--group", "", "--disable")
    entry = served.json("show", "acme")
    assert (entry["group"], entry["disabled"], entry["priority"]) == (None, True, -2)
    assert "acme (off)" in served.say("list")
    served.say("put", "acme")
    entry = served.json("show", "acme")
    assert (entry["models"], entry["weight"], entry["disabled"]) == (None, 1, False)
    assert served.say("delete", "acme") == "acme is removed, with 0 keys"
    assert "There is no tenant 'acme'" in served.fail("show", "acme")


def test_keys(served: Served) -> None:
    served.say("put", "beta")
    key = served.say("key", "create", "beta", "--expires", "2099-01-31")
    assert key.startswith("bl-")
    assert len(key.split()) == 1
    (entry,) = served.json("key", "list", "beta")["keys"]
    assert entry["ending"] == key[-4:]
    assert entry["expires_at"] == 4073500800
    other = served.say("key", "rotate", "beta", entry["id"], "--grace", "60")
    listed = served.say("key", "list", "beta")
    assert f"…{key[-4:]}" in listed
    assert f"…{other[-4:]}" in listed
    assert key not in listed
    assert served.say("key", "revoke", "beta", entry["id"]).endswith("is removed")
    assert "no key with this id" in served.fail("key", "revoke", "beta", entry["id"])
    assert len(served.json("key", "list", "beta")["keys"]) == 1


def test_usage(served: Served) -> None:
    said = served.say("usage", "acme", "--day", "2026-11-21")
    assert "2026-11-21  acme" in said
    assert "of this gateway alone" in said
    assert len(served.json("usage", "--from", "2026-11-20", "--to", "2026-11-21")["rows"]) == 4
    assert "first, last" in served.fail("usage", "--from", "2026-11-21", "--to", "2026-11-20")


def test_many_are_listed_over_pages(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("branchline.gateway.tenants.command.PAGE", 2)
    for number in range(5):
        served.say("put", f"many-{number}")
    names = [entry["name"] for entry in served.json("list")["tenants"]]
    assert [name for name in names if name.startswith("many")] == [f"many-{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("put", "acme", "--model", "=x"), 2, "NAME or NAME=MODEL"),
        (("put", "acme", "--model", "x", "--model", "x=y"), 2, "given twice"),
        (("put", "acme", "--weight", "0"), 2, "0.001"),
        (("put", "acme", "--max-in-flight", "-1"), 2, "whole number, or none"),
        (("put", "a b"), 1, "name: must be"),
        (("put", ".."), 1, "is no name of a tenant"),
        (("put", "nobody", "--update"), 1, "There is no tenant"),
        (("key", "create", "nobody"), 1, "There is no tenant"),
        (("key", "create", "nobody", "--expires", "soon"), 2, "30d, 12h"),
        (("usage", "--day", "today"), 2, "%Y-%m-%d"),
    ],
)
def test_mistakes(served: Served, words: tuple[str, ...], status: int, said: str) -> None:
    assert said in served.fail(*words, status=status)


def test_no_server() -> None:
    assert "no server at" in Served("http://127.0.0.1:9").fail("list")
