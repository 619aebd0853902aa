"""Adapters of a real fleet: gateways, replicas and Redis as processes, peft as the oracle."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from adapter_server import AdapterServer, Stream, adapter_flags, parsed, refusal
from bad_puts import BadPut, Put, Workshop
from bad_requests import ALIAS, BAD_ARCHIVES, BAD_BODIES, BAD_NAMES, BAD_SOURCES, MAX_MIB
from gateway_process import SECRET, Fleet, fleet
from oracle import Reference
from server_process import wait_for
from tiny_models import make_tiny_model
from versions_house import VersionsHouse, make_sources

from branchline.gateway.adapters.placement import ranked
from branchline.gateway.fleet.headers import FLEET_SECRET, MODEL
from branchline.gateway.fleet.versions import wire_name

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

REPLICAS = ("replica-1", "replica-2", "replica-3")
TAR = {"content-type": "application/x-tar"}


@dataclass(frozen=True)
class House:
    """A fleet of two, its first gateway as an adapter server, another gateway beside it."""

    fleet: Fleet
    versions: VersionsHouse
    second: AdapterServer
    workshop: Workshop

    @property
    def server(self) -> AdapterServer:
        return self.versions.server

    def at(self, replica_id: str) -> list[dict[str, Any]]:
        """Versions that a replica says it has."""
        url = f"{self.fleet.replicas[replica_id].base_url}/fleet/versions"
        answer = httpx.get(url, headers={FLEET_SECRET: SECRET}, timeout=10)
        return list(parsed(answer)["versions"])

    def holders(self, digest: str) -> set[str]:
        """Replicas that hold a version."""
        return {
            replica_id
            for replica_id in self.fleet.replicas
            if any(entry["digest"] == digest for entry in self.at(replica_id))
        }

    def upload(self, name: str, source: str) -> dict[str, Any]:
        content = tar_of(self.versions.sources[source])
        path = f"/admin/adapters/{name}"
        return parsed(self.server.http.put(path, content=content, headers=TAR), 200, 201)

    def clear(self) -> None:
        for alias in parsed(self.server.http.get("/admin/aliases"))["aliases"]:
            parsed(self.server.http.delete(f"/admin/aliases/{alias['alias']}"))
        for name in self.server.names():
            parsed(self.server.http.delete(f"/admin/adapters/{name}?wait=30"), 200, 202)


def tar_of(directory: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for entry in sorted(directory.iterdir()):
            tar.add(entry, entry.name)
    return file.getvalue()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("fleet").resolve()
    workshop = Workshop.open(directory)
    model = make_tiny_model(directory / "long", "llama", max_position_embeddings=4096)
    sources = make_sources(model, directory / "root")
    flags = [*adapter_flags([directory / "root"]), "--max-adapter-mb", str(MAX_MIB)]
    flags += ["--adapter-source", "https://adapters.example/public"]
    with fleet(model, serve_flags=flags, gateways=2) as house:
        servers = [AdapterServer(gateway) for gateway in house.gateways]
        reference = Reference(model, sources)
        yield House(
            house, VersionsHouse(servers[0], model, sources, reference), servers[1], workshop
        )
        for server in servers:
            server.close()


@pytest.fixture(autouse=True)
def clean(house: House) -> Iterator[None]:
    yield
    house.clear()


def test_an_upload_is_held_by_two_and_answers_at_both(house: House) -> None:
    answer = house.upload("legal", "one")
    digest = answer["adapter"]["digest"]
    assert house.holders(digest) == {"replica-1", "replica-2"}
    assert {one["replica"] for one in answer["adapter"]["replicas"]} == {"replica-1", "replica-2"}
    house.versions.ask("legal", "one")
    wait_for(lambda: "legal" in house.second.models(), 10)
    house.versions.check(house.second.complete("legal", "by the other gateway"), "one")
    version_id = house.at("replica-1")[0]["version_id"]
    for replica in house.fleet.replicas.values():
        body = {"model": "legal", "prompt": "abc", "max_tokens": 3, "temperature": 0}
        headers = {FLEET_SECRET: SECRET, MODEL: wire_name(version_id)}
        url = f"{replica.api_url}/completions"
        assert parsed(httpx.post(url, json=body, headers=headers))["model"] == "legal"
        assert httpx.post(url, json=body, timeout=10).status_code in (401, 404)


def test_a_source_that_is_gone_later_is_pulled_from_a_peer(house: House, tmp_path: Path) -> None:
    house.versions.put("legal", "two")
    assert not house.versions.put("legal", "two")["changed"]
    house.versions.ask("legal", "two")
    entry = house.server.get("legal")
    assert entry["source"] == {
        "kind": "directory",
        "location": str(house.versions.sources["two"]),
    }


def test_a_replacement_during_streams_mixes_nothing(house: House) -> None:
    house.upload("legal", "one")
    wait_for(lambda: "legal" in house.second.models(), 10)
    streams: list[Stream] = []
    for server in (house.server, house.second):
        streams += [server.stream("legal", f"stream {n}", max_tokens=400) for n in range(3)]
    for stream in streams:
        stream.read(5)
    house.upload("legal", "two")
    house.versions.check(house.server.complete("legal", "from now on"), "two")
    wait_for(
        lambda: house.versions.is_of(*_pair(house.second.complete("legal", "other")), "two"), 10
    )
    for stream in streams:
        stream.finish()
        house.versions.check(stream, "one")
    house.server.post("legal", "rollback")
    house.versions.check(house.server.complete("legal", "and back"), "one")


def _pair(answer: Any) -> tuple[list[int], list[int]]:
    return answer.prompt, answer.output


def test_names_flip_at_both_gateways_while_requests_run(house: House) -> None:
    """Every answer is whole: of one version or of the other."""
    house.upload("legal", "one")
    wait_for(lambda: "legal" in house.second.models(), 5)
    stop, answers = threading.Event(), list[Any]()

    def ask(server: AdapterServer, which: int) -> None:
        while not stop.is_set():
            answers.append(server.complete("legal", f"prompt {which}", max_tokens=6))

    threads = [
        threading.Thread(target=ask, args=(server, number))
        for number, server in enumerate((house.server, house.second))
    ]
    for thread in threads:
        thread.start()
    for source in ("two", "one", "two"):
        house.upload("legal", source)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert len(answers) > 4
    versions = [[s for s in ("one", "two") if house.versions.is_of(*_pair(a), s)] for a in answers]
    assert all(versions), "each is whole"


def test_aliases_split_alike_at_every_gateway(house: House) -> None:
    house.upload("legal", "one")
    house.upload("legal", "two")
    split = [{"adapter": "legal", "version": n, "percent": 50} for n in (1, 2)]
    house.server.put_alias("counsel", split=split)
    wait_for(lambda: "counsel" in house.second.models(), 5)
    seen = set()
    for key in range(8):
        answers = [
            s.complete("counsel", "abc", user=f"u{key}") for s in (house.server, house.second)
        ]
        assert answers[0].output == answers[1].output
        seen.add(tuple(answers[0].output))
    assert len(seen) == 2


@pytest.mark.parametrize("kinds", [BAD_ARCHIVES, BAD_SOURCES, BAD_NAMES, BAD_BODIES])
def test_what_a_server_refuses_the_fleet_refuses_in_the_same_words(
    house: House, kinds: dict[str, BadPut]
) -> None:
    house.upload("good", "one")
    house.server.put_alias(ALIAS, adapter="good")
    before = {replica_id: house.at(replica_id) for replica_id in house.fleet.replicas}
    different: dict[str, Any] = {}
    for kind, bad in kinds.items():
        answer = _send(house, bad.make(house.workshop))
        error = refusal(answer)
        said = (answer.status_code, error["param"], error["code"])
        if said != (bad.status, bad.param, bad.code):
            different[kind] = (said, error["message"], (bad.status, bad.param, bad.code, bad.says))
    assert not different
    assert {replica_id: house.at(replica_id) for replica_id in house.fleet.replicas} == before
    assert house.server.names() == ["good"]


def _send(house: House, put: Put) -> httpx.Response:
    return house.server.http.put(
        "/admin/adapters/bad",
        content=put.content,
        headers={"content-type": put.content_type},
        extensions={"target": f"/admin/adapters/{put.name}".encode()},
    )


def test_a_tenant_reaches_no_adapter_of_anothers(house: House) -> None:
    house.upload("acme/legal", "one")
    house.upload("rival/legal", "two")
    http, keys = house.server.http, {}
    for tenant in ("acme", "rival"):
        models = {"legal": f"{tenant}/legal"}
        parsed(http.put(f"/admin/tenants/{tenant}", json={"models": models}), 200, 201)
        keys[tenant] = parsed(http.post(f"/admin/tenants/{tenant}/keys", json={}), 200, 201)["key"]
    rivals = house.at("replica-1")
    answers = {}
    for tenant, source in (("acme", "one"), ("rival", "two")):
        client = openai.OpenAI(
            base_url=house.server.server.api_url, api_key=keys[tenant], max_retries=0
        )
        assert [model.id for model in client.models.list()] == ["legal"]
        answer = house.server.__class__.complete  # the same call, with the tenant's key
        server = AdapterServer(house.server.server)
        server.openai = client
        answers[tenant] = answer(server, "legal", "the same prompt")
        house.versions.check(answers[tenant], source)
        names = ["rival/legal", "acme/legal", "nobody/legal", "base"]
        names += [wire_name(entry["version_id"]) for entry in rivals]
        for name in names:
            with pytest.raises(openai.NotFoundError) as caught:
                client.completions.create(model=name, prompt="x", max_tokens=1)
            assert caught.value.code == "model_not_found"
        for header in (MODEL, "x-branchline-tenant"):
            forged = client.completions.create(
                model="legal",
                prompt="x",
                max_tokens=1,
                extra_headers={header: wire_name(rivals[0]["version_id"])},
            )
            assert forged.model == "legal"
        client.close()
        server.close()
    assert answers["acme"].output != answers["rival"].output
    for tenant in keys:
        parsed(http.delete(f"/admin/tenants/{tenant}"))


def test_the_command_line_speaks_to_a_gateway(house: House) -> None:
    def run(*words: str) -> str:
        url = house.server.server.base_url
        command = [sys.executable, "-P", "-m", "branchline", "adapter", *words, "--url", url]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("put", "legal", str(house.versions.sources["one"]), "--upload")
    run("put", "legal", str(house.versions.sources["two"]), "--pin", "host")
    assert "legal" in run("list")
    assert "kept: 1, 2" in run("get", "legal")
    run("alias", "set", "counsel", "legal,1=90", "legal,2=10")
    assert "counsel" in run("alias", "list")
    run("load", "legal")
    run("unpin", "legal")
    run("evict", "legal")
    run("rollback", "legal")
    assert "1 *" in run("versions", "legal")
    run("alias", "delete", "counsel")
    run("delete", "legal", "--wait", "20")


def test_one_that_joins_takes_its_part_from_peers_and_one_that_dies_is_replaced(
    house: House, tmp_path: Path
) -> None:
    house.upload("legal", "one")
    house.upload("medical", "two")
    house.upload("tax", "three")
    digests = {name: house.server.get(name)["digest"] for name in ("legal", "medical", "tax")}
    house.fleet.start_replica("replica-3")
    house.fleet.replicas["replica-3"].wait_until_ready(120)
    house.fleet.wait_until_up()
    name = next(n for n in map(str, range(99)) if "replica-1" in ranked(n, REPLICAS)[:2])
    killed = _upload_through_a_death(house, name)
    assert killed["adapter"]["version"] == 1
    house.fleet.wait_until_up()
    survivors = {"replica-2", "replica-3"}
    for source, (name, digest) in zip(("one", "two", "three"), digests.items(), strict=True):
        house.versions.ask(name, source)
        wait_for(lambda d=digest: house.holders(d) == survivors, 40)  # type: ignore[misc]


def _upload_through_a_death(house: House, name: str) -> dict[str, Any]:
    """An upload of which half is on its way when a replica that takes it is killed."""
    content = tar_of(house.versions.sources["three"])
    half = len(content) // 2

    def body() -> Iterator[bytes]:
        yield content[:half]
        time.sleep(0.3)  # some of it is at both replicas by now, most likely
        house.fleet.kill("replica-1")
        del house.fleet.replicas["replica-1"]
        yield content[half:]

    path = f"/admin/adapters/{name}"
    return parsed(house.server.http.put(path, content=body(), headers=TAR), 201)
