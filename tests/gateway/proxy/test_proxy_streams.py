"""Streams through a gateway: passed on untouched, resumed where a replica is lost."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from gateway_house import LIMITS, House, chat, gateway_house, text_of
from mock_replica import NUM_PROMPT_TOKENS, Fault, whole_text


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with gateway_house() as house:
        yield house


def on_all(house: House, *faults: Fault) -> None:
    """The next requests have these faults, wherever they go: all share one line."""
    shared = house.replicas[0].faults
    shared.extend(faults)
    for replica in house.replicas:
        replica.faults = shared


async def test_a_stream_is_whole_and_shows_no_comment(house: House) -> None:
    events = await house.stream({"max_tokens": 6})
    assert text_of(events) == whole_text(6)
    assert events.endswith("data: [DONE]\n\n")
    assert ": branchline" not in events
    assert not house.view.flights
    assert sum(house.view.outcomes.values()) == 1


@pytest.mark.parametrize("kind", ["cut", "cut_whole", "silence", "failure", "end"])
@pytest.mark.parametrize("after", [0, 1, 3, 6])
async def test_a_lost_stream_goes_on_elsewhere(house: House, kind: str, after: int) -> None:
    undisturbed = await house.stream({"max_tokens": 6})
    on_all(house, Fault(kind, after))  # type: ignore[arg-type]
    assert await house.stream({"max_tokens": 6}) == undisturbed
    assert not house.view.flights


async def test_a_stream_is_resumed_several_times(house: House) -> None:
    faults = [Fault("cut", n) for n in (2, 3, 4, 5)]
    on_all(house, *faults)
    assert text_of(await house.stream({"max_tokens": 8})) == whole_text(8)
    assert house.last_log()["resumes"] == 4
    lengths = [len(r.choices[0].token_ids) for x in house.replicas for r in x.records]
    assert sorted(lengths) == [1, 2, 3, 4]


async def test_usage_is_counted_once_over_a_resumption(house: House) -> None:
    on_all(house, Fault("cut", 4))
    events = await house.stream({"max_tokens": 6, "stream_options": {"include_usage": True}})
    assert events.count('"usage"') == 1
    assert [usage.num_output_tokens for usage in house.limiter.settled if usage] == [6]
    on_all(house, Fault("cut", 4))
    await house.stream({"max_tokens": 6})
    usage = house.limiter.settled[-1]
    assert usage is not None
    assert (usage.num_input_tokens, usage.num_output_tokens) == (NUM_PROMPT_TOKENS, 6)
    assert usage.num_cached_tokens == 3


async def test_a_stream_that_nobody_can_go_on_with_says_so(house: House) -> None:
    house.replicas[1].fingerprint = "another"
    house.replicas[0].faults.append(Fault("cut", 3))
    house.view.out["r1"] = "for now"
    task = asyncio.create_task(house.stream({"max_tokens": 6}))
    await house.until(lambda: house.replicas[0].headers)
    house.view.out = {"r0": "gone"}
    events = await task
    assert text_of(events) == whole_text(2)
    blocks = events.split("\n\n")
    assert json.loads(blocks[-3][6:])["error"]["code"] == "stream_interrupted"
    assert blocks[-2] == "data: [DONE]"
    assert house.last_log()["outcome"] == "interrupted"


async def test_a_replica_declared_out_is_left_at_once(house: House) -> None:
    on_all(house, Fault("silence", 3))
    task = asyncio.create_task(house.stream({"max_tokens": 6}))
    await house.until(lambda: house.view.flights and any(r.known for r in house.replicas))
    await asyncio.sleep(0.1)
    flight = house.view.flights[0]
    flight.lost_reason = "lease"
    flight.lost.set()
    assert text_of(await task) == whole_text(6)
    assert house.view.outcomes[flight.replica_id, "stalled"] == 1


async def test_a_request_fault_in_the_stream_is_passed_on(house: House) -> None:
    on_all(house, Fault("failure", 2, status=400, code="bad_thing"))
    events = await house.stream({"max_tokens": 6})
    assert '"code":"bad_thing"' in events
    assert house.last_log()["resumes"] == 0


async def test_a_client_that_leaves_frees_the_replica_at_once(house: House) -> None:
    for replica in house.replicas:
        replica.token_seconds = 0.02
    async with house.post(json=chat(stream=True, max_tokens=3000)) as response:
        await response.content.readany()
    await house.until(lambda: sum(replica.num_left for replica in house.replicas) == 1, 2.0)
    await house.until(lambda: house.log)
    assert house.last_log()["outcome"] == "client_left"
    assert [o for _, o in house.view.outcomes] == ["client_left"]
    assert house.limiter.settled[-1] is not None
    assert not house.view.flights


async def test_a_client_that_takes_nothing_is_cut() -> None:
    """And its stream is not computed on into a buffer that grows."""
    async with gateway_house(limits=replace(LIMITS, client_timeout=0.5)) as house:
        for replica in house.replicas:
            replica.padding = "x" * 20_000
        reader, writer = await open_small(house.url)
        body = json.dumps(chat(stream=True, max_tokens=100_000)).encode()
        head = f"host: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n" + head + body)
        await house.until(lambda: house.log, 10)
        assert house.last_log()["outcome"] == "client_left"
        await house.until(lambda: sum(r.num_left for r in house.replicas) == 1)
        assert not house.view.flights
        writer.close()
        del reader


async def open_small(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that takes little before it is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    address = url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(connection, (address[0], int(address[1])))
    return await asyncio.open_connection(sock=connection, limit=1024)


async def test_a_gateway_whose_time_is_up_ends_streams_with_an_error(house: House) -> None:
    for replica in house.replicas:
        replica.token_seconds = 0.02
    task = asyncio.create_task(house.stream({"max_tokens": 500}))
    await house.until(lambda: any(replica.known for replica in house.replicas))
    await asyncio.sleep(0.1)
    house.services.proxy.watchdog.stop_all()
    events = await task
    assert "stream_interrupted" in events
    assert events.endswith("data: [DONE]\n\n")
    whole = asyncio.create_task(house.answer({"max_tokens": 500}))
    await house.until(lambda: house.view.flights)
    house.services.proxy.watchdog.stop_all()
    assert (await whole)[0] == 503


async def test_a_stream_that_takes_replicas_down_is_not_carried_on(house: House) -> None:
    for replica in house.replicas:
        replica.always = Fault("cut", 3)
    events = await house.stream({"max_tokens": 6})
    assert "stream_interrupted" in events
    assert text_of(events) == whole_text(2)
    assert house.last_log()["resumes"] == LIMITS.max_tries
    assert not house.view.flights


async def test_a_refusal_after_a_loss_is_passed_on_and_nobodys_fault(house: House) -> None:
    on_all(house, Fault("cut", 0), Fault("status", status=400, code="bad_thing"))
    async with house.post(json=chat(stream=True)) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "bad_thing"
    assert sorted(outcome for _, outcome in house.view.outcomes) == ["refused", "unreachable"]
    assert not house.view.flights


async def test_a_gateway_that_ends_while_nobody_can_go_on_says_so(house: House) -> None:
    house.view.out["r1"] = "for now"
    house.replicas[0].faults.append(Fault("cut", 3))
    task = asyncio.create_task(house.stream({"max_tokens": 6}))
    await house.until(lambda: house.replicas[0].headers)
    house.view.out["r0"] = "gone"
    await house.until(lambda: house.view.outcomes)
    await asyncio.sleep(0.05)
    house.services.proxy.watchdog.stop_all()
    assert "stream_interrupted" in await task
