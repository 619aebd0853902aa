"""What the radix tree knows a sequence by: its tokens as bytes, and the namespaces they are in."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from .cache_types import Namespace

BYTES_PER_TOKEN = 4


class PrefixKey:
    """The full blocks of one sequence, extended as it grows.

    Blocks before ``own_start`` are in the namespace ``base``, all others in ``own``: an activated
    LoRA computes nothing before its activation, and the block that holds it is wholly its own.
    """

    __slots__ = ("_block_bytes", "_tokens", "base", "block_size", "own", "own_start")

    def __init__(
        self, block_size: int, own: Namespace, base: Namespace | None = None, own_start: int = 0
    ) -> None:
        self.block_size = block_size
        self.own = own
        self.base = own if base is None else base
        self.own_start = own_start
        self._block_bytes = block_size * BYTES_PER_TOKEN
        self._tokens = bytearray()

    @property
    def num_blocks(self) -> int:
        """Full blocks known so far."""
        return len(self._tokens) // self._block_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes a block."""
        return self._block_bytes

    def extend_to(self, token_ids: Sequence[int]) -> None:
        """Take in the full blocks of ``token_ids``, which begin with what is known already."""
        known = len(self._tokens) // BYTES_PER_TOKEN
        end = len(token_ids) // self.block_size * self.block_size
        if end > known:
            self._tokens += array("i", token_ids[known:end]).tobytes()

    def blocks(self, start: int, stop: int) -> bytes:
        """The tokens of blocks [start, stop)."""
        return bytes(self._tokens[start * self._block_bytes : stop * self._block_bytes])

    def namespace(self, block: int) -> Namespace:
        """Whose KV a block holds."""
        return self.base if block < self.own_start else self.own

    def run_end(self, block: int) -> int:
        """The first block behind ``block`` that is in another namespace, or past the end."""
        return min(self.own_start, self.num_blocks) if block < self.own_start else self.num_blocks


def token_ids_of(key: bytes | bytearray) -> list[int]:
    """The token ids behind the bytes of some blocks."""
    return array("i", bytes(key)).tolist()
