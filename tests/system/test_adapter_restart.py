"""The state directory: what was there is there again, after SIGTERM, kill -9 and a dead engine."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from adapter_server import (
    ADMIN,
    BASE,
    AdapterServer,
    Background,
    adapter_flags,
    parsed,
    serve_adapters,
)
from admin_churn import AdminChurn, Names
from evil_archives import files_below, zip_of
from oracle import Reference
from server_process import ServerProcess, start, wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model
from versions_house import VersionsHouse, make_sources

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Home:
    """What outlives a server: the model, the adapters, and what is right."""

    model: Path
    root: Path
    sources: dict[str, Path]
    reference: Reference

    def serving(self, server: AdapterServer) -> VersionsHouse:
        return VersionsHouse(server, self.model, self.sources, self.reference)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    directory = tmp_path_factory.mktemp("home").resolve()
    model = make_tiny_model(directory / "model", "llama", max_position_embeddings=4096)
    sources = make_sources(model, directory / "root")
    sources["lost"] = make_adapter(model, directory / "root" / "lost", 6, seed=6)
    return Home(model, directory / "root", sources, Reference(model, sources))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def serving(home: Home, state: Path, *flags: str) -> Any:
    return serve_adapters(home.model, "--state-dir", str(state), *flags, roots=[home.root])


def upload(server: AdapterServer, name: str, source: Path) -> None:
    files = zip_of({path.name: path.read_bytes() for path in sorted(source.iterdir())})
    headers = {"content-type": "application/zip"}
    response = server.http.put(f"/admin/adapters/{name}", content=files, headers=headers)
    parsed(response, 200, 201)


def shown(server: AdapterServer) -> dict[str, tuple[Any, ...]]:
    """Of each name what has to outlive a server."""
    entries = parsed(server.http.get("/admin/adapters"))["adapters"]
    fields = ("digest", "version", "versions", "pin", "source", "created", "aliases", "rank")
    return {entry["name"]: tuple(entry[field] for field in fields) for entry in entries}


def test_a_restart_brings_all_back(home: Home, state: Path) -> None:
    """Also where formatted files are gone or no good: they are made again."""
    with serving(home, state) as server:
        before = fill(home.serving(server))
        lost = server.get("lost")["digest"]
        refuse_a_second_server(home, state)
        server.server.terminate()
        assert server.server.wait() == 0
    [gone, spoiled, _] = sorted(set((state / "adapters").iterdir()) - {formatted(state, lost)})
    gone.unlink()
    spoiled.write_bytes(spoiled.read_bytes()[:-64])
    formatted(state, lost).unlink()
    shutil.rmtree(state / "uploads" / lost)
    with serving(home, state) as server:
        house = home.serving(server)
        assert (shown(server), server.http.get("/admin/aliases").json()) == before
        assert server.models() == [BASE, "counsel", "legal", "team/sql", "uploaded"]
        assert server.get("legal")["tier"] == "device"
        assert server.get("team/sql")["tier"] in ("host", "device")
        for name, source in (("legal", "two"), ("team/sql", "one"), ("uploaded", "three")):
            house.ask(name, source)
        house.ask("counsel", "one")
        server.post("legal", "rollback")
        house.ask("legal", "one")
        assert house.put("legal", "two")["adapter"]["version"] == 4, "numbers are not used again"
        say_what_is_lost_and_take_it_anew(house, home.sources["lost"])
        assert "Traceback" not in server.server.output()


def fill(house: VersionsHouse) -> tuple[object, object]:
    """Names of all kinds; what is shown of them."""
    server = house.server
    house.put("legal", "one")
    upload(server, "legal", house.sources["two"])
    house.put("legal", "three", pin="device")
    server.post("legal", "rollback")
    house.put("team/sql", "one", pin="host")
    upload(server, "uploaded", house.sources["three"])
    upload(server, "lost", house.sources["lost"])
    split = [
        {"adapter": "legal", "version": 1, "percent": 50},
        {"adapter": "team/sql", "percent": 50},
    ]
    server.put_alias("counsel", split=split)
    return shown(server), server.http.get("/admin/aliases").json()


def formatted(state: Path, digest: str) -> Path:
    return state / "adapters" / f"{digest}.adapter"


def say_what_is_lost_and_take_it_anew(house: VersionsHouse, source: Path) -> None:
    """A version whose files are gone with its source."""
    server = house.server
    assert "uploaded again" in server.get("lost")["error"]
    answer = server.http.post("/v1/completions", json={"model": "lost", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_available")
    upload(server, "lost", source)
    house.ask("lost", "lost")
    assert server.get("lost")["error"] is None


def refuse_a_second_server(home: Home, state: Path) -> None:
    command = [sys.executable, "-P", "-m", "branchline", "serve", str(home.model), "--port", "0"]
    second = subprocess.run(
        [*command, "--state-dir", str(state)], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1
    assert "another server is using it" in second.stderr


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_was_acknowledged_outlives_a_kill(home: Home, state: Path, seed: int) -> None:
    """kill -9 in the midst of puts, uploads, removals, pins and aliases of two admins at once."""
    rng = random.Random(seed)
    num_kills = 1 if seed == 1 else 8
    expected = {prefix: [Names()] for prefix in ("a", "b")}
    digests: dict[str, str] = {}
    for kill in range(num_kills + 1):
        with serving(home, state) as server:
            house = home.serving(server)
            if not digests:
                digests = digests_of(house)
            names = {
                prefix: check_names(house, prefix, digests, expected[prefix]) for prefix in expected
            }
            check_files(server, state)
            if kill < num_kills:
                expected = churn_and_kill(server, home, names, rng)
        if kill < num_kills and seed != 1 and kill % 2:
            kill_while_starting(home, state, rng)


def digests_of(house: VersionsHouse) -> dict[str, str]:
    """By source; nothing of it stays."""
    found = {}
    for source in house.sources:
        found[source] = house.put("first", source)["adapter"]["digest"]
    house.server.delete("first")
    return found


def churn_and_kill(
    server: AdapterServer, home: Home, names: dict[str, Names], rng: random.Random
) -> dict[str, list[Names]]:
    """For each admin what there may be afterwards: what was acknowledged, or one call more."""
    churns = {
        prefix: AdminChurn(
            server.server.base_url, ADMIN, prefix, home.sources, own, random.Random(rng.random())
        )
        for prefix, own in names.items()
    }
    wait_for(
        lambda: all(churn.num_acknowledged > 3 or churn.errors for churn in churns.values()), 30
    )
    moment = time.monotonic() + rng.uniform(0.0, 0.7)
    wait_for(lambda: time.monotonic() >= moment, 30)
    kill_all_of(server.server)
    for churn in churns.values():
        churn.join(30)
        assert not churn.is_alive()
        assert not churn.errors
    return {prefix: [churn.names, churn.pending] for prefix, churn in churns.items()}


def kill_all_of(server: ServerProcess) -> None:
    """kill -9 for the server; what it has started has to leave by itself."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"{alive} outlive the server"


def kill_while_starting(home: Home, state: Path, rng: random.Random) -> None:
    flags = [*adapter_flags([home.root]), "--state-dir", str(state)]
    with start(home.model, *flags) as server:
        moment = time.monotonic() + rng.uniform(1.0, 6.0)
        wait_for(lambda: time.monotonic() >= moment, 30)
        kill_all_of(server)


def check_names(
    house: VersionsHouse, prefix: str, digests: dict[str, str], allowed: list[Names]
) -> Names:
    """One of the states that may be is there, whole, and answers; returns it."""
    server = house.server
    entries = parsed(server.http.get("/admin/adapters"))["adapters"]
    own = {entry["name"]: entry for entry in entries if entry["name"].startswith(f"{prefix}-")}
    sources = {digest: source for source, digest in digests.items()}
    aliases = {
        entry["alias"]: entry["split"][0]["adapter"]
        for entry in parsed(server.http.get("/admin/aliases"))["aliases"]
        if entry["alias"].startswith(f"{prefix}-")
    }
    found = Names(
        {name: sources[entry["digest"]] for name, entry in own.items()},
        {name: entry["pin"] for name, entry in own.items()},
        aliases,
    )
    assert found in allowed, f"{found}\nis none of\n{allowed}"
    for name, source in found.sources.items():
        house.ask(name, source, max_tokens=4)
    for alias, name in found.aliases.items():
        house.ask(alias, found.sources[name], max_tokens=4)
    for name, entry in own.items():
        assert entry["error"] is None
        assert entry["pin"] != "device" or entry["tier"] == "device", f"{name} is not held"
    return found


def check_files(server: AdapterServer, state: Path) -> None:
    """No file is there but those of versions that are kept."""
    digests, uploads = set(), set()
    for name in server.names():
        for version in parsed(server.http.get(f"/admin/adapters/{name}/versions"))["versions"]:
            digests.add(version["digest"])
            if version["source"]["kind"] == "upload":
                uploads.add(version["digest"])
    wait_for(lambda: not files_below(state / "work"), 10, lambda: str(files_below(state / "work")))
    assert files_below(state / "adapters") == {f"{digest}.adapter" for digest in digests}
    assert uploads <= set(os.listdir(state / "uploads")) <= digests
    assert set(os.listdir(state)) <= {
        *("registry.json", "lock", "work", "adapters", "texts", "uploads")
    }
    if (state / "registry.json").exists():
        json.loads((state / "registry.json").read_bytes())


@pytest.fixture
def restarting(home: Home, state: Path) -> Iterator[VersionsHouse]:
    with serving(home, state, "--restart-engine") as server:
        yield home.serving(server)


def test_a_dead_engine_gets_its_adapters_back(restarting: VersionsHouse) -> None:
    house, server = restarting, restarting.server
    house.put("pinned", "one", pin="device")
    house.put("host", "two", pin="host")
    house.put("free", "three")
    house.ask("free", "three")
    before = shown(server)
    stream = server.stream("free", "to the end")
    stream.read(5)
    killed = server.server.engine_pid
    os.kill(killed, signal.SIGKILL)
    reading = Background(stream.finish)
    with pytest.raises(Exception, match="engine"):
        reading.result(30)
    wait_for(lambda: not server.server.is_ready(), 10)
    meanwhile = server.http.put(
        "/admin/adapters/late", json={"source": str(house.sources["two"])}, timeout=60
    )
    assert meanwhile.status_code in (201, 503), meanwhile.text
    wait_for(server.server.is_ready, 60, server.server.output)
    assert server.server.engine_pid != killed
    assert {name: entry for name, entry in shown(server).items() if name != "late"} == before
    assert server.get("pinned")["tier"] == "device"
    assert server.get("host")["tier"] in ("host", "device")
    for name, source in (("pinned", "one"), ("host", "two"), ("free", "three")):
        house.ask(name, source)
    house.put("late", "two")
    house.ask("late", "two")
    house.clear()
