"""A replica's table of prefix keys, its stream and a gateway that reads it, without a server."""

from __future__ import annotations

from dataclasses import dataclass, field

from branchline.engine.cache_types import BlockChanges
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.key_answer import KeyAnswer
from branchline.gateway.fleet.records import ReplicaReport
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.server.fleet.keys_publisher import KeyPublisher
from branchline.server.fleet.keys_table import KeyTable

NAMES = RedisNames("test")


def number_key(number: int) -> bytes:
    return number.to_bytes(16, "big")


@dataclass
class KeyReplica:
    """Holds what it is told; ``fetch`` is its ``GET /fleet/keys``, which ``is_down`` keeps away."""

    replica_id: str
    epoch: str = "e"
    is_down: bool = False
    num_fetches: int = 0
    table: KeyTable = field(init=False)

    def __post_init__(self) -> None:
        self.table = KeyTable(self.epoch)

    def restart(self, epoch: str) -> None:
        self.epoch = epoch
        self.table = KeyTable(epoch)

    def hold(self, *numbers: int) -> None:
        self.table.tie([(number_key(number), number_key(number)) for number in numbers])
        self.table.take_blocks(BlockChanges(stored=b"".join(map(number_key, numbers))))

    def lose(self, *numbers: int) -> None:
        self.table.take_blocks(BlockChanges(removed=b"".join(map(number_key, numbers))))

    def publisher(self, link: RedisLink) -> KeyPublisher:
        return KeyPublisher(self.table, link, NAMES, self.replica_id)

    def report(self) -> ReplicaReport:
        return ReplicaReport(
            replica_id=self.replica_id,
            url=f"http://{self.replica_id}",
            epoch=self.epoch,
            beat=1,
            state="ready",
            fingerprint="f",
            models=["base"],
            max_model_len=100,
            key_sequence=self.table.sequence,
        )

    async def fetch(self, epoch: str | None, after: int) -> KeyAnswer:
        self.num_fetches += 1
        if self.is_down:
            raise OSError("it is down")
        events = None if epoch is None else self.table.events_after(epoch, after)
        if events is None:
            return KeyAnswer(snapshot=self.table.snapshot())
        return KeyAnswer(events=events)
