"""Before the first byte: where a request goes next, and what it says of the replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from gateway_house import SECRET, House, chat, gateway_house
from mock_replica import Fault, whole_text

from branchline.gateway.fleet.records import AdapterPlace
from branchline.gateway.types import Usage


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with gateway_house() as house:
        yield house


def share(house: House, *faults: Fault) -> None:
    """The next requests have these faults, wherever they go."""
    shared = house.replicas[0].faults
    shared.extend(faults)
    for replica in house.replicas:
        replica.faults = shared


def text(answer: dict) -> str:  # type: ignore[type-arg]
    return str(answer["choices"][0]["message"]["content"])


async def test_an_answer_is_passed_on_untouched(house: House) -> None:
    status, answer = await house.answer({"max_tokens": 4})
    assert (status, text(answer)) == (200, whole_text(4))
    assert house.limiter.settled[0].num_output_tokens == 4  # type: ignore[union-attr]
    assert list(house.view.outcomes.values()) == [1]


async def test_the_body_goes_on_byte_for_byte(house: House) -> None:
    body = b'{ "model":"base" ,"messages":[{"role":"user","content":"\\u00e9"}],"x":1.0 }'
    async with house.post(data=body, headers={"content-type": "application/json"}) as response:
        assert response.status == 200
    assert [b for replica in house.replicas for b in replica.bodies] == [body]


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault("reset"), "unreachable"),
        (Fault("leave"), "stalled"),
        (Fault("status", status=500), "failed"),
        (Fault("status", status=503), "failed"),
        (Fault("status", status=503, code="draining"), "overloaded"),
        (Fault("status", status=429, headers=(("retry-after", "9"),)), "overloaded"),
        (Fault("status", status=401), "refused"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_answers(
    house: House, fault: Fault, outcome: str, stream: bool
) -> None:
    faults = [fault, fault] if fault.kind == "reset" else [fault]
    share(house, *faults)  # a reset connection is tried once more at once: it may be stale
    if stream:
        assert whole_text(2).split()[1] in await house.stream({"max_tokens": 2})
    else:
        status, answer = await house.answer({"max_tokens": 2})
        assert (status, text(answer)) == (200, whole_text(2))
    outcomes = {outcome for _, outcome in house.view.outcomes}
    assert outcomes == {outcome, "ok"}
    assert house.last_log()["retries"] == 1
    assert not house.view.flights


async def test_a_stopped_replica_is_passed_over(house: House) -> None:
    await house.replicas[0].stop()
    for _ in range(4):
        assert (await house.answer({}))[0] == 200
    assert house.view.outcomes["r0", "unreachable"] > 0
    assert house.view.outcomes["r1", "ok"] == 4


async def test_a_slow_replica_that_knows_the_request_is_waited_for(house: House) -> None:
    for replica in house.replicas:
        replica.token_seconds = 0.4
    status, _ = await house.answer({"max_tokens": 2})
    assert status == 200
    assert sum(replica.num_probes for replica in house.replicas) >= 1
    assert sum(len(replica.bodies) for replica in house.replicas) == 1


async def test_a_refused_request_is_nobodys_fault(house: House) -> None:
    share(house, Fault("status", status=400, code="bad_thing"))
    status, answer = await house.answer({})
    assert (status, answer["error"]["code"]) == (400, "bad_thing")
    assert [outcome for _, outcome in house.view.outcomes] == ["refused"]
    assert house.limiter.settled == [Usage(num_input_tokens=0, num_output_tokens=0)]


async def test_full_replicas_are_passed_on_with_their_retry_after(house: House) -> None:
    for replica in house.replicas:
        replica.always = Fault("status", status=429, headers=(("retry-after", "9"),))
    async with house.post(json=chat()) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "9"
    assert house.limiter.settled == [None]


async def test_tries_are_bounded(house: House) -> None:
    for replica in house.replicas:
        replica.always = Fault("status", status=500)
    status, _ = await house.answer({})
    assert status == 500
    assert sum(len(replica.bodies) for replica in house.replicas) == 2


async def test_nobody_there_is_a_503(house: House) -> None:
    house.view.out = {"r0": "gone", "r1": "gone"}
    async with house.post(json=chat()) as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert (await response.json())["error"]["code"] == "no_replica"


async def test_a_wrong_secret_is_no_client_error(house: House) -> None:
    for replica in house.replicas:
        replica.always = Fault("status", status=401)
    status, answer = await house.answer({})
    assert (status, answer["error"]["code"]) == (502, "replica_refused")


async def test_an_adapter_is_brought_where_it_is_missing(house: House) -> None:
    house.adapters.adapters["legal"] = "d" * 32
    house.replicas[0].places = [AdapterPlace(name="fleet/" + "d" * 32, digest="x", tier="disk")]
    for _ in range(2):
        assert (await house.answer({"model": "legal"}))[0] == 200
    assert house.adapters.ensured == [("fleet/" + "d" * 32, "r1", False)]
    sent = [head["x-branchline-model"] for r in house.replicas for head in r.headers]
    assert sent == ["fleet/" + "d" * 32] * 2


async def test_a_stale_place_is_brought_again_once(house: House) -> None:
    house.adapters.adapters["legal"] = "d" * 32
    for replica in house.replicas:
        replica.places = [AdapterPlace(name="fleet/" + "d" * 32, digest="x")]
    share(house, Fault("status", status=404, code="model_not_found"))
    assert (await house.answer({"model": "legal"}))[0] == 200
    assert [anew for _, _, anew in house.adapters.ensured] == [True]
    for replica in house.replicas:
        replica.always = Fault("status", status=404, code="model_not_found")
    status, answer = await house.answer({"model": "legal"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "fleet/" not in answer["error"]["message"]


async def test_fleet_headers_of_a_client_never_pass(house: House) -> None:
    forged = {
        "x-branchline-fleet-secret": "guess",
        "x-branchline-tenant": "other",
        "x-branchline-model": "fleet/other",
        "x-branchline-resume": "5",
        "x-branchline-cache-group": "theirs",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "user-agent": "me",
    }
    assert (await house.answer({}, headers=forged))[0] == 200
    (head,) = [head for replica in house.replicas for head in replica.headers]
    assert head["x-branchline-fleet-secret"] == SECRET
    assert head["x-branchline-tenant"] == "default"
    assert head["x-branchline-model"] == "base"
    assert head["user-agent"] == "me"
    assert not {"x-branchline-resume", "x-branchline-cache-group", "cookie"} & set(head)
    assert "x-forwarded-for" not in head


async def test_a_client_that_leaves_before_the_answer_frees_the_replica(house: House) -> None:
    for replica in house.replicas:
        replica.token_seconds = 1.0
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.1):
            await house.answer({"max_tokens": 50})
    await house.until(lambda: sum(replica.num_left for replica in house.replicas) == 1, 2.0)
    await house.until(lambda: house.log)
    assert house.last_log()["status"] == 499
    settled = house.limiter.settled[-1]
    assert settled is not None, "what was computed for it is its own to pay"
    assert 0 < settled.num_output_tokens <= 50
    assert not house.view.flights


async def test_connections_are_used_again(house: House) -> None:
    for _ in range(10):
        await house.answer({})
        await house.stream({})
    session = house.services.proxy.upstream._session
    assert session is not None
    connector = session.connector
    assert connector is not None
    assert sum(map(len, connector._conns.values())) <= 2  # type: ignore[attr-defined]
