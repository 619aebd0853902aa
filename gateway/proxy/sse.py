"""Server-sent events as replicas write them: bytes in pieces to whole blocks, nothing rewritten.

See the WHATWG HTML specification, 9.2. A block is everything up to an empty line: an event with
its fields, or a comment.
"""

from __future__ import annotations

MAX_BLOCK_BYTES = 8 << 20
"""Far over what logprobs of a chunk take; a replica that sends more is broken."""

DONE = b"data: [DONE]\n\n"


class BadStream(Exception):  # noqa: N818 - what it says is what is wrong
    """A replica's stream is not what it should be."""


class BlockReader:
    """Cuts a stream into blocks, each with the empty line that ends it."""

    def __init__(self, max_block_bytes: int = MAX_BLOCK_BYTES) -> None:
        self._rest = b""
        self._max_block_bytes = max_block_bytes

    @property
    def is_between_blocks(self) -> bool:
        """Whether nothing is left of a block that has not ended."""
        return not self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that ``data`` completes; raises BadStream for one that is too long."""
        if self._rest:
            data = self._rest + data
        parts = data.split(b"\n\n")
        self._rest = parts.pop()
        if len(self._rest) > self._max_block_bytes:
            raise BadStream(f"an event of over {self._max_block_bytes} bytes")
        return [part + b"\n\n" for part in parts if part]
