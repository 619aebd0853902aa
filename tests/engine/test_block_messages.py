"""The server hears of cached blocks from the engine's process, where it asks for that."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from branchline.engine.cache_types import (
    BlockChanges,
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    Namespace,
)
from branchline.engine.key_news import KeyNews
from branchline.engine.messages import FromEngine, StepDone
from branchline.engine.process import EngineServer
from branchline.engine.types import EngineStats


@dataclass
class Socket:
    """Keeps what is sent."""

    sent: list[FromEngine] = field(default_factory=list)

    def poll(self, timeout_ms: int) -> bool:
        return False

    def send(self, payload: bytes) -> None:
        self.sent.append(msgspec.msgpack.decode(payload, type=FromEngine))


class Adapters:
    """No adapters."""

    def events(self) -> list[object]:
        return []

    def answers(self) -> list[object]:
        return []


class Idle:
    """A loop without work."""

    num_steps = 0
    has_work = False
    is_running = False
    adapters = Adapters()

    def tend(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats()


def stored(*keys: bytes) -> BlocksStored:
    return BlocksStored(
        namespace=Namespace("m"),
        parent_key=None,
        block_keys=list(keys),
        token_ids=[],
        block_size=16,
        tier="device",
    )


A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))


def test_changes_are_sent_while_nothing_is_computed():
    socket = Socket()
    server = EngineServer(socket, 0)
    server._turn(Idle())
    assert socket.sent == []
    server._block_news.note(stored(A, B))
    server._turn(Idle())
    server._turn(Idle())
    [message] = socket.sent
    assert isinstance(message, StepDone)
    assert message.blocks == BlockChanges(stored=A + B)


def test_a_move_to_another_tier_is_no_loss():
    news = KeyNews()
    news.note(stored(A))
    assert news.take() == BlockChanges(stored=A)
    news.note(BlocksRemoved(block_keys=[A], tier="device"))
    news.note(stored(A))
    assert news.take() == BlockChanges(stored=A)


def test_what_was_there_before_a_reset_is_not_told_after_it():
    news = KeyNews()
    news.note(stored(A, B))
    news.note(BlocksRemoved(block_keys=[B], tier="device"))
    news.note(CacheCleared())
    news.note(stored(C))
    assert news.take() == BlockChanges(cleared=True, stored=C)
    assert news.take() is None


def test_a_message_holds_only_so_many_keys():
    news = KeyNews()
    news.note(stored(A, B))
    news.note(BlocksRemoved(block_keys=[C], tier="device"))
    assert news.take(2) == BlockChanges(stored=A + B)
    assert news.take(2) == BlockChanges(removed=C)
    assert news.take(2) is None


def test_without_changes_a_step_says_nothing_of_blocks():
    encoded = msgspec.msgpack.encode(StepDone([], EngineStats()))
    assert msgspec.msgpack.decode(encoded, type=FromEngine) == StepDone([], EngineStats())
