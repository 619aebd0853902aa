"""Bad adapters over real HTTP: each has its own 4xx, nothing is left of it, nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from adapter_server import BASE, AdapterServer, Background, refusal, serve_adapters
from bad_configs import BAD_CONFIGS, EXPLOSION
from bad_puts import BadPut, Put, Workshop
from bad_requests import ALIAS, BAD_ARCHIVES, BAD_BODIES, BAD_NAMES, BAD_SOURCES, MAX_MIB
from bad_weights import BAD_WEIGHTS
from evil_archives import files_below
from server_process import wait_for

pytestmark = pytest.mark.timeout(120)

PROMPT = "of all that is refused"
MAX_GROWTH = 48 << 20


@dataclass(frozen=True)
class House:
    """A server with a good adapter and an alias, and what it had before any bad one came."""

    server: AdapterServer
    workshop: Workshop
    state: Path
    files: set[str]
    used: dict[str, float]
    answers: tuple[list[int], list[int]]

    def send(self, put: Put) -> httpx.Response:
        """Send it, with its name as it is written."""
        return self.server.http.put(
            "/admin/adapters/bad",
            content=put.content,
            headers={"content-type": put.content_type},
            extensions={"target": f"/admin/adapters/{put.name}".encode()},
        )

    def answers_now(self) -> tuple[list[int], list[int]]:
        return ask(self.server)

    def check_untouched(self) -> None:
        """Everything is as it was before."""
        assert self.server.names() == ["good"]
        assert self.server.models() == [BASE, ALIAS, "good"]
        assert self.answers_now() == self.answers
        wait_for(lambda: files_below(self.state) == self.files, 5, self.left_over)
        assert self.server.used() == self.used
        assert sum(self.server.tiers().values()) == 1

    def left_over(self) -> str:
        return str(files_below(self.state) ^ self.files)


def ask(server: AdapterServer) -> tuple[list[int], list[int]]:
    """What the base and the good adapter answer."""
    base, good = (server.complete(model, PROMPT, max_tokens=4) for model in (BASE, "good"))
    return base.output, good.output


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("house").resolve()
    workshop = Workshop.open(directory)
    # The server's own temporary files would lie there too.
    state = directory / "state"
    temporary = state / "tmp"
    temporary.mkdir(parents=True)
    flags = ("--state-dir", str(state), "--max-adapter-mb", str(MAX_MIB))
    allowed = ("--adapter-source", "https://adapters.example/public")
    with serve_adapters(
        workshop.model,
        *flags,
        *allowed,
        roots=[workshop.root],
        env={"TMPDIR": str(temporary)},
    ) as server:
        server.put("good", workshop.good)
        server.put_alias(ALIAS, adapter="good")
        answers = ask(server)
        assert answers[0] != answers[1]
        wait_for(lambda: not any((state / "work").iterdir()), 5)
        yield House(server, workshop, state, files_below(state), server.used(), answers)


def check_refused(house: House, bad: BadPut) -> None:
    response = house.send(bad.make(house.workshop))
    error = refusal(response)
    assert (response.status_code, error["param"], error["code"]) == (
        bad.status,
        bad.param,
        bad.code,
    ), error
    assert bad.says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000
    house.check_untouched()


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_are_no_good(house: House, kind: str) -> None:
    check_refused(house, BAD_WEIGHTS[kind])


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_configurations_and_texts_that_are_no_good(house: House, kind: str) -> None:
    check_refused(house, BAD_CONFIGS[kind])


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_archives_that_are_no_good(house: House, kind: str) -> None:
    check_refused(house, BAD_ARCHIVES[kind])


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_sources_that_are_not_allowed(house: House, kind: str) -> None:
    check_refused(house, BAD_SOURCES[kind])


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_names_that_are_no_good(house: House, kind: str) -> None:
    check_refused(house, BAD_NAMES[kind])


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_bodies_that_are_no_good(house: House, kind: str) -> None:
    check_refused(house, BAD_BODIES[kind])


def test_a_bad_replacement_leaves_the_good_one(house: House) -> None:
    put = BAD_WEIGHTS["NaN"].make(house.workshop)
    assert put.source is not None
    refusal(house.send(Put(put.source, name="good")))
    entry = house.server.get("good")
    assert "NaN" in entry["error"]
    assert entry["versions"] == [1]
    house.check_untouched()


def test_others_are_served_while_an_expression_explodes(house: House) -> None:
    put = EXPLOSION.make(house.workshop)
    sending = Background(lambda: house.send(put))
    for _ in range(5):
        assert house.answers_now() == house.answers
    assert sending.is_alive(), "the answers came while it was being checked"
    error = refusal(sending.result())
    assert error["param"] == EXPLOSION.param
    assert EXPLOSION.says in error["message"]
    house.check_untouched()


def test_a_client_that_leaves_leaves_nothing(house: House) -> None:
    put = BAD_CONFIGS["a template without end"].make(house.workshop)
    with pytest.raises(httpx.ReadTimeout):
        house.server.http.put(
            "/admin/adapters/bad", json={"source": put.source}, timeout=httpx.Timeout(5, read=0.2)
        )
    wait_for(lambda: files_below(house.state) == house.files, 30, house.left_over)
    house.check_untouched()


def test_a_file_that_is_damaged_later_fails_its_own_requests(house: House) -> None:
    """And the same bytes, put again, mend it."""
    server = house.server
    [file] = (house.state / "adapters").iterdir()
    server.post("good", "load")
    server.post("good", "evict", tier="host")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(openai.APIStatusError, match="can't be loaded"):
        server.complete("good", PROMPT)
    assert server.complete(BASE, PROMPT, max_tokens=4).output == house.answers[0]
    assert server.get("good")["error"]
    assert not server.put("good", house.workshop.good)["changed"]
    server.post("good", "load")
    house.check_untouched()


def test_a_hundred_of_them_take_no_memory(house: House) -> None:
    kinds = [BAD_WEIGHTS["NaN"], BAD_WEIGHTS["half a pair"], BAD_CONFIGS["rank 0"]]
    kinds += [BAD_ARCHIVES["a zip bomb"], BAD_ARCHIVES["half an archive"]]
    sizes = []
    for _ in range(2):
        for _ in range(10):
            for bad in kinds:
                refusal(house.send(bad.make(house.workshop)))
        sizes.append(resident_bytes(house.server))
    assert sizes[1] - sizes[0] < MAX_GROWTH
    house.check_untouched()


def resident_bytes(server: AdapterServer) -> int:
    """Memory of the server and of the processes that it has started."""
    process = psutil.Process(server.server.process.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
