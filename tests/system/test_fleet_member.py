"""A real server as a member of a fleet: what Redis and gateways get to see of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from redis_server import RedisServer, redis_server
from server_process import ServerProcess, serve, wait_for

from branchline.gateway.fleet.headers import CACHE_GROUP, FLEET_SECRET, MODEL, REQUEST_ID, TENANT
from branchline.gateway.fleet.records import AdapterPlaces, ReplicaReport
from branchline.gateway.fleet.redis_names import RedisNames

from .conftest import BASE, SERVE_FLAGS, Models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SECRET = "k-fleet"
FLEET = {FLEET_SECRET: SECRET}
NAMES = RedisNames("test")


class Replica:
    """A server, and what the fleet's Redis knows of it."""

    def __init__(self, server: ServerProcess, redis: RedisServer) -> None:
        self.server = server
        self.redis = redis

    @property
    def replica_id(self) -> str:
        return self.server.base_url.removeprefix("http://")

    def report(self) -> ReplicaReport | None:
        with self.redis.client() as client:
            raw = client.hget(NAMES.replicas, self.replica_id)
        return None if raw is None else msgspec.json.decode(raw, type=ReplicaReport)

    def age(self) -> float:
        """Seconds since its last beat, by Redis' clock."""
        with self.redis.client() as client:
            seconds, microseconds = client.time()
            beat = client.zscore(NAMES.beats, self.replica_id)
        return float("inf") if beat is None else seconds + microseconds / 1e6 - beat / 1e3

    def places(self) -> AdapterPlaces | None:
        with self.redis.client() as client:
            raw = client.get(NAMES.adapters(self.replica_id))
        return None if raw is None else msgspec.json.decode(raw, type=AdapterPlaces)

    def state(self) -> str | None:
        report = self.report()
        return None if report is None else report.state

    def get(self, path: str, **options: Any) -> httpx.Response:
        url = f"{self.server.base_url}/fleet{path}"
        return httpx.get(url, headers=FLEET, timeout=10, **options)

    def complete(self, prompt: str, headers: dict[str, str], **fields: Any) -> httpx.Response:
        body = {"model": BASE, "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
        url = f"{self.server.api_url}/completions"
        return httpx.post(url, json=body, headers=FLEET | headers, timeout=60)


def flags(redis: RedisServer) -> tuple[str, ...]:
    fleet = ("--fleet", redis.url, "--fleet-name", "test", "--fleet-secret", SECRET)
    return (*SERVE_FLAGS, *fleet, "--shutdown-timeout", "20")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def replica(models: Models, redis: RedisServer) -> Iterator[Replica]:
    with serve(models.model, *flags(redis), lora=models.lora) as server:
        replica = Replica(server, redis)
        wait_for(lambda: replica.state() == "ready", 10, server.output)
        yield replica


def test_it_registers_and_beats(replica: Replica) -> None:
    first = replica.report()
    assert first is not None
    assert (first.url, first.models) == (replica.server.base_url, [BASE])
    assert (first.max_num_seqs, first.block_size) == (64, 16)
    assert len(first.fingerprint) == 32
    wait_for(lambda: replica.report().beat > first.beat + 2, 5)  # type: ignore[union-attr]
    assert replica.age() < 2
    answer = msgspec.json.decode(replica.get("/state").content, type=ReplicaReport)
    assert (answer.epoch, answer.replica_id) == (first.epoch, replica.replica_id)


def test_its_adapters_are_listed(replica: Replica, models: Models) -> None:
    places = replica.places()
    assert places is not None
    assert {place.name for place in places.places} == set(models.lora)
    assert all(place.error is None and len(place.digest) == 64 for place in places.places)
    report = replica.report()
    assert report is not None
    assert (places.epoch, places.version) == (report.epoch, report.adapters_version)
    assert msgspec.json.decode(replica.get("/adapters").content, type=AdapterPlaces) == places


def test_what_it_computes_shows(replica: Replica) -> None:
    before = replica.report()
    assert replica.complete("How fast is it? " * 20, {}).status_code == 200

    def has_moved() -> bool:
        now = replica.report()
        assert now is not None
        assert before is not None
        return now.progress > before.progress and now.prefill_tokens_per_second > 0

    wait_for(has_moved, 5)
    assert replica.complete("hi", {}, model="tenant-16").status_code == 200
    wait_for(lambda: replica.get("/state").json().get("adapter_host_seconds", 0) > 0, 5)
    tiers = {place.name: place.tier for place in replica.places().places}  # type: ignore[union-attr]
    assert tiers["tenant-16"] == "device"


def test_only_the_fleet_comes_in(replica: Replica) -> None:
    for headers in ({}, {FLEET_SECRET: "wrong"}):
        url = f"{replica.server.base_url}/fleet/state"
        answer = httpx.get(url, headers=headers, timeout=10)
        nothing = httpx.get(url.replace("fleet", "fleets"), headers=headers, timeout=10)
        assert answer.status_code == nothing.status_code == 404
        assert answer.text == nothing.text.replace("fleets", "fleet")
    body = {"model": BASE, "prompt": "hi", "max_tokens": 1}
    assert httpx.post(f"{replica.server.api_url}/completions", json=body).status_code == 401


def test_a_gateway_chooses_the_model_and_the_client_sees_its_own_word(replica: Replica) -> None:
    answer = replica.complete("hi", {MODEL: "tenant-8"}, model="legal").json()
    assert answer["model"] == "legal"
    assert answer["choices"] == replica.complete("hi", {}, model="tenant-8").json()["choices"]
    refused = replica.complete("hi", {MODEL: "fleet/unknown"}, model="legal")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "adapter_not_here"


def test_tenants_share_in_a_group_only(replica: Replica) -> None:
    prompt = "A long and common beginning, known to everyone in the group. " * 3

    def cached(tenant: str, group: str | None = None) -> int:
        headers = {TENANT: tenant, **({} if group is None else {CACHE_GROUP: group})}
        usage = replica.complete(prompt, headers).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("acme", "pool") == 0
    assert cached("beta", "pool") > 100
    assert cached("acme") == cached("beta") == cached("pool") == 0
    assert cached("gamma", "acme") == 0


def test_a_request_is_known_by_its_id(replica: Replica) -> None:
    assert replica.get("/requests/nobody").json() == {"known": False, "sent": False}
    replica.complete("hi", {REQUEST_ID: "a/b c.123"})
    assert replica.get("/requests/a%2Fb%20c.123").json() == {"known": False, "sent": False}
    replica.complete("hi", {REQUEST_ID: "a/b.123"})
    assert replica.get("/requests/a%2Fb.123").json() == {"known": True, "sent": True}


def test_a_redis_that_comes_back_empty_is_told_all_again(replica: Replica) -> None:
    first, places = replica.report(), replica.places()
    output = replica.server.output
    replica.redis.kill()
    wait_for(lambda: "is down" in output(), 10, output)
    assert replica.complete("still here", {}).status_code == 200
    replica.redis.start()
    wait_for(lambda: replica.places() is not None, 10, output)
    assert replica.places() == places
    again = replica.report()
    assert first is not None
    assert again is not None
    assert (again.epoch, again.state) == (first.epoch, "ready")
    wait_for(lambda: output().count("answers again") == 1, 10, output)


@pytest.mark.slow
def test_sigterm_drains_for_all_to_see(models: Models, redis: RedisServer) -> None:
    with serve(models.model, *flags(redis)) as server:
        replica = Replica(server, redis)
        wait_for(lambda: replica.state() == "ready", 10, server.output)
        answers: list[httpx.Response] = []
        fields = {"max_tokens": 600, "ignore_eos": True}

        def ask() -> None:
            answers.append(replica.complete("go on", {REQUEST_ID: "long"}, **fields))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: replica.get("/requests/long").json()["known"], 10)
        server.terminate()
        wait_for(lambda: replica.state() == "draining", 5, server.output)
        asking.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 600
        assert server.wait() == 0
        assert replica.report() is None
        assert replica.places() is None


@pytest.mark.slow
def test_redis_may_come_late_and_a_killed_replicas_lease_ages(models: Models) -> None:
    with redis_server() as redis:
        redis.kill()
        with serve(models.model, *flags(redis)) as server:
            replica = Replica(server, redis)
            assert replica.get("/state").json()["state"] == "ready"
            wait_for(lambda: "is down" in server.output(), 10, server.output)
            redis.start()
            wait_for(lambda: replica.state() == "ready", 10, server.output)
            assert server.output().count("is down") == 1
            os.kill(server.process.pid, signal.SIGKILL)
            server.wait()
            wait_for(lambda: replica.age() > 3, 10)
            assert replica.state() == "ready"
