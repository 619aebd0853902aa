"""Streams that run while adapters are loaded, replaced and removed: each is of one version."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from adapter_server import AdapterServer, Background, serve_adapters
from oracle import Reference
from server_process import wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model
from versions_house import VersionsHouse, make_sources

pytestmark = pytest.mark.timeout(180)

NUM_ROUNDS = 20
NUM_TOKENS = 48
STAYS = "stays"
PASSING = ("six", "forty")
"""What is loaded and removed all the time; one, two and three replace each other."""


@dataclass(frozen=True)
class Heard:
    """A stream that has ended, and between which times its version was chosen."""

    prompt: list[int]
    output: list[int]
    asked: float
    begun: float


@dataclass(frozen=True)
class Change:
    """``source`` answers from some time between ``sent`` and ``done`` on."""

    source: str
    sent: float
    done: float


@dataclass
class Listener:
    """Asks ``model`` for one stream after the other until ``stop`` is set."""

    server: AdapterServer
    model: str
    stop: threading.Event
    heard: list[Heard] = field(default_factory=list)

    def run(self) -> None:
        for number in itertools.count():
            if self.stop.is_set():
                return
            asked = time.monotonic()
            prompt = f"{self.model} {number % 5}"
            stream = self.server.stream(self.model, prompt, max_tokens=NUM_TOKENS)
            stream.read(1)
            begun = time.monotonic()
            stream.finish()
            assert len(stream.output) == NUM_TOKENS
            self.heard.append(Heard(stream.prompt, stream.output, asked, begun))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionsHouse]:
    directory = tmp_path_factory.mktemp("house").resolve()
    model, root = directory / "model", directory / "root"
    make_tiny_model(model, "llama", max_position_embeddings=4096)
    sources = make_sources(model, root)
    for rank, name in ((6, PASSING[0]), (40, PASSING[1]), (16, STAYS)):
        sources[name] = make_adapter(model, root / name, rank, seed=rank)
    with serve_adapters(model, roots=[root]) as server:
        yield VersionsHouse(server, model, sources, Reference(model, sources))


def test_steady_streams_do_not_notice(house: VersionsHouse) -> None:
    """20 replacements, 20 loads, 20 removals beside four steady streams."""
    server, stop = house.server, threading.Event()
    house.put(STAYS, STAYS, pin="device")
    house.put("moves", "one", pin="device")
    used = server.used()
    listeners = [Listener(server, model, stop) for model in ("base", STAYS, "moves", "moves")]
    reading = [Background(listener.run) for listener in listeners]
    changes = [Change("one", 0, 0)]
    sources = itertools.cycle(["two", "three", "one"])
    try:
        for number in range(NUM_ROUNDS):
            changes.append(replace(house, next(sources)))
            load_and_remove(house, PASSING[number % 2])
        changes.append(replace(house, "one"))
    finally:
        stop.set()
        for thread in reading:
            thread.result()
    check_steady(house, listeners[0], None)
    check_steady(house, listeners[1], STAYS)
    seen = [source for each in listeners[2:] for source in check_moving(house, each, changes)]
    assert set(seen) == {"one", "two", "three"}, "each of them was heard"
    wait_for(lambda: server.used() == used, 10, lambda: f"{server.used()}, not {used}")
    assert server.get("moves")["version"] == len(changes)
    house.clear()


def replace(house: VersionsHouse, source: str) -> Change:
    sent = time.monotonic()
    assert house.put("moves", source)["changed"]
    return Change(source, sent, time.monotonic())


def load_and_remove(house: VersionsHouse, source: str) -> None:
    """A name that comes, is listened to, and is removed before its stream has ended."""
    entry = house.put("passes", source)["adapter"]
    house.server.post("passes", "load")
    stream = house.server.stream("passes", "in passing", max_tokens=NUM_TOKENS)
    stream.read(1)
    removing = Background(lambda: house.server.delete("passes"))
    stream.finish()
    freed = removing.result()["freed"]
    assert freed == {"device": entry["bytes"]["device"], "host": entry["bytes"]["host"]}
    house.check(stream, source)


def check_steady(house: VersionsHouse, listener: Listener, source: str | None) -> None:
    assert listener.heard, f"{listener.model} was silent"
    for stream in listener.heard:
        assert house.is_of(stream.prompt, stream.output, source), f"{listener.model}: {stream}"


def check_moving(house: VersionsHouse, listener: Listener, changes: list[Change]) -> list[str]:
    """The source of each stream, which has to be one that could answer when it began."""
    seen = []
    for stream in listener.heard:
        allowed = sources_between(changes, stream.asked, stream.begun)
        found = [name for name in allowed if house.is_of(stream.prompt, stream.output, name)]
        assert len(found) == 1, f"of {allowed}, it is of {found}: {stream}"
        seen += found
    return seen


def sources_between(changes: list[Change], asked: float, begun: float) -> set[str]:
    """The sources that can have answered at some time between these."""
    ends = [*(change.done for change in changes[1:]), float("inf")]
    return {
        change.source
        for change, end in zip(changes, ends, strict=True)
        if change.sent <= begun and end >= asked
    }
