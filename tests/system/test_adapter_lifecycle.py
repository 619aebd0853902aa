"""Versions that come, serve and go while requests run, over real HTTP; answers as peft's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from adapter_server import Answer, Background, refusal
from server_process import wait_for
from versions_house import NOTHING, VersionsHouse, versions_house

pytestmark = pytest.mark.timeout(120)

LONG_PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 2
BLOCK = 16


@pytest.fixture(scope="module")
def whole_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionsHouse]:
    with versions_house(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture
def house(whole_house: VersionsHouse) -> Iterator[VersionsHouse]:
    """Every test begins with no adapters, and ends with all memory back."""
    assert whole_house.server.used() == NOTHING
    yield whole_house
    whole_house.clear()


def test_put_and_use(house: VersionsHouse) -> None:
    answer = house.put("legal", "one")
    assert answer["changed"]
    entry = answer["adapter"]
    assert (entry["name"], entry["version"], entry["rank"]) == ("legal", 1, 4)
    assert "q_proj" in entry["modules"]
    assert entry["source"] == {"kind": "directory", "location": str(house.sources["one"])}
    house.put("team/legal@2", "two")
    assert house.server.models() == ["base", "legal", "team/legal@2"]
    assert house.ask("legal", "one").model == "legal"
    assert house.ask("team/legal@2", "two").model == "team/legal@2"
    assert house.ask("base", None).output != house.ask("legal", "one", "what base says").output
    [first, second] = house.server.http.get("/admin/adapters").json()["adapters"]
    assert (first["name"], second["name"]) == ("legal", "team/legal@2")
    assert first["loads"] == second["loads"] == 1
    assert first["digest"] != second["digest"]
    assert first["last_used"] >= second["last_used"] > 0


def test_streams_stay_with_their_version(house: VersionsHouse) -> None:
    """A stream that begins before a replacement ends on what it began with."""
    house.put("legal", "one")
    before = [house.server.stream("legal", f"stream {i}") for i in range(3)]
    for stream in before:
        stream.read(5)
    assert house.server.get("legal")["leases"] == 3
    answer = house.put("legal", "two")
    assert (answer["changed"], answer["adapter"]["version"]) == (True, 2)
    assert answer["adapter"]["leases"] == 0
    after = [house.server.stream("legal", f"stream {i}") for i in range(3)]
    for stream in (*before, *after):
        stream.read(200)
    house.ask("legal", "two")
    assert sum(house.server.tiers().values()) == 2, "the old one is there for its streams"
    for stream in before:
        assert stream.finish_reason is None
        house.check(stream, "one")
        stream.close()
    for stream in after:
        house.check(stream, "two")
    wait_for(lambda: sum(house.server.tiers().values()) == 1, 10)
    for stream in after:
        stream.close()


def test_requests_during_replacements_are_of_one_version(house: VersionsHouse) -> None:
    house.put("legal", "one")
    with ThreadPoolExecutor(4) as clients:
        running = [
            clients.submit(house.server.complete, "legal", f"request {i}", max_tokens=24)
            for i in range(48)
        ]
        for source in ("two", "one", "two"):
            house.put("legal", source)
        answers = [future.result() for future in running]
    seen = Counter(source_of(house, answer.prompt, answer.output) for answer in answers)
    assert set(seen) <= {"one", "two"}
    house.ask("legal", "two")


def test_changes_that_race_leave_one_of_them(house: VersionsHouse) -> None:
    """Puts, removals and requests of one name by many at once: each is done, or finds no name."""
    rng = random.Random(3)
    plan = [rng.choice(["put", "remove", "ask", "ask"]) for _ in range(120)]
    answers: list[Answer] = []

    def act(action: str) -> int:
        http = house.server.http
        if action == "put":
            source = house.sources[rng.choice(["one", "two"])]
            return http.put("/admin/adapters/legal", json={"source": str(source)}).status_code
        if action == "remove":
            return http.delete("/admin/adapters/legal", params={"wait": 5}).status_code
        try:
            answers.append(house.server.complete("legal", "a race", max_tokens=8))
        except openai.NotFoundError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor(8) as clients:
        statuses = Counter(clients.map(act, plan))
    assert set(statuses) == {200, 201, 404}, statuses
    for answer in answers:
        source_of(house, answer.prompt, answer.output)
    house.put("legal", "three")
    house.ask("legal", "three")


def source_of(house: VersionsHouse, prompt: list[int], output: list[int]) -> str:
    """The one source whose answer it is."""
    found = [name for name in ("one", "two") if house.is_of(prompt, output, name)]
    assert len(found) == 1, f"an answer of {found}"
    return found[0]


def test_the_same_bytes_change_nothing(house: VersionsHouse) -> None:
    prompt = f"the same bytes. {LONG_PROMPT}"
    house.put("legal", "one")
    first = house.ask("legal", "one", prompt)
    again = house.put("legal", "one")
    assert not again["changed"]
    assert again["adapter"]["versions"] == [1]
    second = house.ask("legal", "one", prompt)
    assert second.num_cached == (len(prompt) - 1) // BLOCK * BLOCK
    assert second.output == first.output


def test_cached_prefixes_are_never_another_versions(house: VersionsHouse) -> None:
    prompt = f"never stale. {LONG_PROMPT}"
    for version, source in ((1, "one"), (2, "two"), (3, "three")):
        house.put("legal", source)
        assert house.server.get("legal")["version"] == version
        first = house.ask("legal", source, prompt)
        second = house.ask("legal", source, prompt)
        assert (first.num_cached, second.num_cached > 0) == (0, True)


def test_bytes_that_come_back_find_their_prefixes(house: VersionsHouse) -> None:
    """Under any name, for what is cached is the version's."""
    prompt = f"as I was saying. {LONG_PROMPT}"
    house.put("legal", "one")
    house.ask("legal", "one", prompt)
    house.server.delete("legal")
    house.put("legal", "two")
    assert house.ask("legal", "two", prompt).num_cached == 0
    house.put("other", "one")
    assert house.ask("other", "one", prompt).num_cached > 0


def test_rollback(house: VersionsHouse) -> None:
    for source in ("one", "two", "three"):
        house.put("legal", source)
    back = house.server.post("legal", "rollback")
    assert (back["changed"], back["adapter"]["version"]) == (True, 2)
    house.ask("legal", "two")
    house.server.post("legal", "rollback", version=1)
    house.ask("legal", "one")
    kept = house.server.http.get("/admin/adapters/legal/versions").json()["versions"]
    assert [(each["version"], each["is_current"]) for each in kept] == [
        (1, True),
        (2, False),
        (3, False),
    ]
    error = refusal(house.server.http.post("/admin/adapters/legal/rollback", json={"version": 9}))
    assert error["code"] == "version_not_found"
    assert sum(house.server.tiers().values()) == 1, "versions that are kept are on disk only"


def test_a_canary_gets_its_share(house: VersionsHouse) -> None:
    house.put("legal", "one")
    house.put("legal", "two")
    split = [
        {"adapter": "legal", "version": 1, "percent": 80},
        {"adapter": "legal", "version": 2, "percent": 20},
    ]
    house.server.put_alias("counsel", split=split)
    expected = {
        source: house.ask(name, source, "canary", max_tokens=3).output
        for name, source in (("legal", "two"),)
    }
    users = [f"user {i}" for i in range(400)]
    first = ask_as(house, users)
    assert set(map(tuple, first.values())) >= {tuple(expected["two"])}
    canaries = {user for user, output in first.items() if output == expected["two"]}
    assert 56 <= len(canaries) <= 104, "20 percent of 400, give or take three deviations"
    mainline = {tuple(output) for user, output in first.items() if user not in canaries}
    assert len(mainline) == 1
    assert ask_as(house, users[:40]) == {user: first[user] for user in users[:40]}
    split[0]["percent"], split[1]["percent"] = 50, 50
    house.server.put_alias("counsel", split=split)
    wider = ask_as(house, users)
    moved = {user for user, output in wider.items() if output == expected["two"]}
    assert canaries < moved, "who was a canary stays one"
    assert 170 <= len(moved) <= 230
    house.server.put_alias("counsel", adapter="legal", version=1)
    house.ask("counsel", "one", "canary", max_tokens=3)
    error = refusal(house.server.http.delete("/admin/adapters/legal"))
    assert error["code"] == "adapter_in_use"
    house.server.http.post("/admin/aliases/counsel/rollback")
    assert ask_as(house, users[:40]) == {user: wider[user] for user in users[:40]}


def ask_as(house: VersionsHouse, users: list[str]) -> dict[str, list[int]]:
    """What each user hears from the alias."""

    def ask(user: str) -> list[int]:
        return house.server.complete("counsel", "canary", max_tokens=3, user=user).output

    with ThreadPoolExecutor(8) as clients:
        return dict(zip(users, clients.map(ask, users), strict=True))


def test_tiers_and_pins(house: VersionsHouse) -> None:
    server = house.server
    entry = house.put("legal", "one")["adapter"]
    device, host = float(entry["bytes"]["device"]), float(entry["bytes"]["host"])
    assert server.post("legal", "load")["tier"] == "device"
    check_tier(house, "device", {"device": device, "dense": 0.0, "host": host})
    assert server.post("legal", "evict")["tier"] == "host"
    check_tier(house, "host", NOTHING | {"host": host})
    assert server.post("legal", "evict", tier="host")["tier"] == "disk"
    check_tier(house, "disk", NOTHING)
    assert server.post("legal", "load", tier="host")["tier"] == "host"
    check_tier(house, "host", NOTHING | {"host": host})
    house.ask("legal", "one")
    assert server.get("legal")["tier"] == "device", "a request has loaded it"
    assert (server.get("legal")["loads"], server.get("legal")["evictions"]) == (2, 1)


def test_a_pin_is_the_names(house: VersionsHouse) -> None:
    server = house.server
    house.put("legal", "one")
    pinned = server.post("legal", "pin")
    assert (pinned["tier"], pinned["pin"]) == ("device", "device")
    error = refusal(server.http.post("/admin/adapters/legal/evict"))
    assert error["code"] == "adapter_busy"
    assert "pinned" in error["message"]
    house.put("legal", "two")
    after = server.get("legal")
    assert (after["tier"], after["pin"]) == ("device", "device"), "it is the next version's too"
    assert server.post("legal", "unpin")["pin"] is None
    assert server.post("legal", "evict", tier="host")["tier"] == "disk"
    pinned = server.post("legal", "pin", tier="host")
    assert (pinned["tier"], pinned["pin"]) == ("host", "host")
    assert server.post("legal", "evict")["tier"] == "host"
    house.ask("legal", "two")


def check_tier(house: VersionsHouse, tier: str, used: dict[str, float]) -> None:
    """The only adapter is there, and takes so many bytes."""
    tiers = {"device": 0.0, "host": 0.0, "disk": 0.0} | {tier: 1.0}
    assert (house.server.tiers(), house.server.used()) == (tiers, used)


def test_put_with_a_pin(house: VersionsHouse) -> None:
    entry = house.put("legal", "one", pin="device")["adapter"]
    assert (entry["pin"], entry["tier"]) == ("device", "device")
    entry = house.put("host", "two", pin="host")["adapter"]
    assert (entry["pin"], entry["tier"] in ("host", "device")) == ("host", True)
    error = refusal(house.server.http.post("/admin/adapters/host/evict", json={"tier": "host"}))
    assert error["code"] == "adapter_busy"


def test_delete_while_a_stream_runs(house: VersionsHouse) -> None:
    house.put("legal", "one")
    stream = house.server.stream("legal", "to the end", max_tokens=1000)
    stream.read(5)
    early = house.server.http.delete("/admin/adapters/legal", params={"wait": 0.1})
    assert early.status_code == 202
    assert (early.json()["done"], early.json()["requests"]) == (False, 1)
    assert house.server.models() == ["base"]
    with pytest.raises(openai.NotFoundError) as caught:
        house.server.complete("legal", "no more")
    assert caught.value.code == "model_not_found"
    assert refusal(house.server.http.get("/admin/adapters/legal"))["code"] == "adapter_not_found"
    again = house.server.http.delete("/admin/adapters/legal")
    assert again.status_code == 404
    assert house.server.used()["device"] > 0
    stream.finish()
    house.check(stream, "one")
    wait_for(lambda: house.server.used() == NOTHING, 10)


def test_delete_waits_for_the_last_stream(house: VersionsHouse) -> None:
    entry = house.put("legal", "one")["adapter"]
    stream = house.server.stream("legal", "to the end", max_tokens=1000)
    stream.read(5)
    deleting = Background(lambda: house.server.delete("legal", wait=60))
    wait_for(lambda: house.server.models() == ["base"], 10)
    assert deleting.is_alive()
    stream.finish()
    house.check(stream, "one")
    freed = deleting.result()["freed"]
    assert freed == {"device": entry["bytes"]["device"], "host": entry["bytes"]["host"]}
    assert house.server.used() == NOTHING


def test_a_name_that_comes_back_is_a_new_one(house: VersionsHouse) -> None:
    house.put("legal", "one")
    house.put("legal", "three")
    house.server.delete("legal")
    entry = house.put("legal", "two")["adapter"]
    assert (entry["version"], entry["versions"]) == (1, [1])
    house.ask("legal", "two")


def test_two_names_of_the_same_bytes_share_them(house: VersionsHouse) -> None:
    house.put("legal", "one")
    house.put("twin", "one")
    house.ask("legal", "one")
    house.ask("twin", "one")
    assert house.server.tiers() == {"device": 1.0, "host": 0.0, "disk": 0.0}
    assert house.server.delete("legal")["freed"] is None, "the other name has them"
    house.ask("twin", "one")
