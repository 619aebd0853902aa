"""Replicas without a model, in a process of their own: they answer at once, and beat in Redis.

    python -m branchline.benchmarks.gateway_load.upstream --redis URL --replicas N

prints their addresses as JSON. An answer has ``num_tokens`` tokens; a stream with ``"user":"hold"``
in its body gets them a second apart, any other all at once. No HTTP library, so that next to
nothing of what is measured is theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import click
import msgspec
import redis.asyncio
import uvloop

from branchline.gateway.fleet import headers as fleet
from branchline.gateway.fleet.key_answer import encode_answer
from branchline.gateway.fleet.records import AdapterPlaces, KeySnapshot, ReplicaReport
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.fleet.resume import COMMENT, ChoiceProgress, StreamComment, StreamOpening

MODEL = "mock"
BEAT_SECONDS = 0.25
HOLD = b'"user":"hold"'
NUM_PROMPT_TOKENS = 300

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_WITH_STATE = f"{fleet.STREAM_STATE}: 1".encode()


class Replica:
    """One replica's state; ``num_running`` are streams that are held now."""

    def __init__(self, replica_id: str, num_tokens: int) -> None:
        self.replica_id = replica_id
        self.url = ""
        self.num_running = 0
        self.num_answers = 0
        self.whole = _json_answer(_completion(num_tokens))
        self.blocks = _blocks(num_tokens, with_state=False)
        self.blocks_with_state = _blocks(num_tokens, with_state=True)
        self.stream = _STREAM_HEAD + b"".join(self.blocks) + b"0\r\n\r\n"
        self.stream_with_state = _STREAM_HEAD + b"".join(self.blocks_with_state) + b"0\r\n\r\n"
        self._beat = 0

    def report(self) -> ReplicaReport:
        """How it stands; steps always succeed."""
        self._beat += 1
        return ReplicaReport(
            replica_id=self.replica_id,
            url=self.url,
            epoch=f"epoch-{self.replica_id}",
            beat=self._beat,
            state="ready",
            fingerprint="f" * 32,
            models=[MODEL],
            max_model_len=32_768,
            progress=self._beat + self.num_answers,
            num_running=self.num_running,
            max_num_seqs=4096,
            prefill_tokens_per_second=1e6,
        )


class Connection(asyncio.Protocol):
    """One connection, with one request at a time or several in a row."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._held = b""
        self._transport: asyncio.Transport | None = None
        self._step: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol, as the others."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._held = data = self._held + data if self._held else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            length = _content_length(head)
            if len(data) < end + 4 + length:
                break
            body, data = data[end + 4 : end + 4 + length], data[end + 4 + length :]
            self._answer(head, body)
        self._held = data

    def connection_lost(self, exc: Exception | None) -> None:
        """Hold its stream no longer."""
        if self._step is not None:
            self._step.cancel()
            self._ended()

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        replica = self._replica
        if head.startswith(b"get "):
            self._transport.write(_get(replica, head.split(b" ", 2)[1]))
            return
        replica.num_answers += 1
        with_state = _WITH_STATE in head
        if b'"stream":true' not in body:
            self._transport.write(replica.whole)
        elif HOLD in body:
            self._transport.write(_STREAM_HEAD)
            replica.num_running += 1
            self._hold(replica.blocks_with_state if with_state else replica.blocks, 0)
        else:
            self._transport.write(replica.stream_with_state if with_state else replica.stream)

    def _hold(self, blocks: list[bytes], index: int) -> None:
        assert self._transport is not None
        if index < len(blocks):
            self._transport.write(blocks[index])
            self._step = asyncio.get_running_loop().call_later(1.0, self._hold, blocks, index + 1)
        else:
            self._transport.write(b"0\r\n\r\n")
            self._ended()

    def _ended(self) -> None:
        self._step = None
        self._replica.num_running -= 1


def _content_length(head: bytes) -> int:
    begin = head.find(b"\r\ncontent-length:")
    return int(head[begin + 17 :].split(b"\r\n", 1)[0]) if begin >= 0 else 0


def _get(replica: Replica, path: bytes) -> bytes:
    if path == b"/fleet/state":
        return _json_answer(replica.report())
    if path == b"/fleet/adapters":
        return _json_answer(
            AdapterPlaces(epoch=f"epoch-{replica.replica_id}", version=0, places=[])
        )
    if path.startswith(b"/fleet/keys"):
        epoch = f"epoch-{replica.replica_id}"
        return _bytes_answer(encode_answer(KeySnapshot(epoch=epoch, sequence=0)))
    if path.startswith(b"/fleet/requests/"):
        return _json_answer({"known": True, "sent": False})
    return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def _json_answer(value: object) -> bytes:
    return _bytes_answer(msgspec.json.encode(value))


def _bytes_answer(body: bytes) -> bytes:
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _completion(num_tokens: int) -> dict[str, object]:
    text = "word " * num_tokens
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    head = {"id": "chatcmpl-mock", "object": "chat.completion", "created": 1, "model": MODEL}
    return {**head, "choices": [choice], "usage": _usage(num_tokens)}


def _usage(num_tokens: int) -> dict[str, int]:
    total = NUM_PROMPT_TOKENS + num_tokens
    counts = {"prompt_tokens": NUM_PROMPT_TOKENS, "completion_tokens": num_tokens}
    return {**counts, "total_tokens": total}


def _blocks(num_tokens: int, *, with_state: bool) -> list[bytes]:
    """A chunk of HTTP for each token and one for the end, as a replica writes them."""
    opening = StreamOpening("chatcmpl-mock", 1, f"{'f' * 32}.x", ["p" * 32], [7])
    first = StreamComment(1, opening, num_prompt_tokens=NUM_PROMPT_TOKENS)
    events = [(first, _delta({"role": "assistant", "content": ""}, None))]
    for number in range(num_tokens):
        finish = "length" if number == num_tokens - 1 else None
        progress = ChoiceProgress(0, [1000 + number], 5 * (number + 1), finish)
        events.append((StreamComment(1, None, [progress], 0), _delta({"content": "word "}, finish)))
    blocks = [
        (COMMENT + msgspec.json.encode(comment) + b"\n\n" if with_state else b"") + event
        for comment, event in events
    ]
    blocks[-1] += b"data: [DONE]\n\n"
    return [b"%x\r\n%b\r\n" % (len(block), block) for block in blocks]


def _delta(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + msgspec.json.encode({**head, "choices": [choice]}) + b"\n\n"


async def _listen(replica: Replica) -> None:
    factory: Callable[[], Connection] = lambda: Connection(replica)  # noqa: E731
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, "127.0.0.1", 0, backlog=4096)
    replica.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _serve(redis_url: str, fleet_name: str, replicas: list[Replica]) -> None:
    for replica in replicas:
        await _listen(replica)
    print(msgspec.json.encode([replica.url for replica in replicas]).decode(), flush=True)
    names = RedisNames(fleet_name)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        while True:
            reports = {r.replica_id: msgspec.json.encode(r.report()) for r in replicas}
            pipeline = client.pipeline(transaction=False)
            pipeline.hset(names.replicas, mapping=dict(reports))
            pipeline.zadd(names.beats, dict.fromkeys(reports, round(time.time() * 1000)))
            await pipeline.execute()
            await asyncio.sleep(BEAT_SECONDS)


@click.command()
@click.option("--redis", "redis_url", required=True)
@click.option("--fleet-name", default="default")
@click.option("--replicas", type=click.IntRange(1, 64), default=4)
@click.option("--tokens", type=click.IntRange(1, 4096), default=32)
def main(redis_url: str, fleet_name: str, replicas: int, tokens: int) -> None:
    """Serve until killed."""
    made = [Replica(f"mock-{number}", tokens) for number in range(replicas)]
    uvloop.run(_serve(redis_url, fleet_name, made))


if __name__ == "__main__":
    main()
