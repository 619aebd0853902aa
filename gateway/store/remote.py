"""The store in Redis; every call is one Lua script or one page of a hash, and so atomic.

```
{…}:generation   drawn when the store was made; absent: Redis came back empty
{…}:store:K      hash    name -> revision, a space, the document
{…}:store:gone   zset    kind, a space, name -> the revision of its removal; the newest 2,000
{…}:changes      stream  id <revision>-<nonce>, fields kind and name; the newest 1,000
```

Revisions are about Unix microseconds of Redis's clock and rise with every change. The nonce tells
whether the stream is still the one that was read: a failover can lose the last changes, and what
is written next may get their revisions.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fleet.connection import RedisLink
from ..fleet.redis_names import RedisNames
from ..fleet.script import Script
from .documents import KINDS, Conflict, Document, Entry, Item, Tombstone
from .local_copy import MAX_TOMBSTONES, LocalCopy

MAX_POLLED = 200
"""Documents in the answer to one poll; what changed more is read page by page."""
PAGE = 100
"""Documents in one page, and in one merge: every call has to fit into the link's bound."""
MERGE_BYTES = 512 << 10
MARGIN_MICROSECONDS = 60_000_000
"""How far ahead a new store's revisions begin: above those that its maker may not have seen."""

_FOLDER = Path(__file__).parent


def _script(name: str) -> Script:
    return Script((_FOLDER / f"{name}.lua").read_text())


class Moved(Exception):  # noqa: N818
    """Redis has not the store that the copy was read from: it is to be read anew."""


@dataclass(frozen=True, slots=True)
class News:
    """What changed up to ``position``; ``counts`` of documents by kind, in the order of KINDS."""

    position: str
    counts: list[int]
    entries: list[Entry]


class RemoteStore:
    """Speaks to Redis; raises RedisDown. Keeps nothing."""

    def __init__(self, link: RedisLink, names: RedisNames, max_changes: int = 1000) -> None:
        self._link = link
        self._hashes = {kind: names.store(kind) for kind in KINDS}
        self._head = [names.generation, names.changes, names.store("gone")]
        self._keys = [*self._head, *self._hashes.values()]
        self._caps = (max_changes, MAX_TOMBSTONES)
        self._poll, self._change = _script("poll"), _script("change")
        self._merge, self._begin = _script("merge"), _script("begin")

    async def poll(self, copy: LocalCopy) -> News:
        """What is newer than the copy; raises Moved."""
        args = [*KINDS, copy.generation, copy.position, MAX_POLLED]
        reply = _ok(await self._run(self._poll, self._keys, args))
        position = reply[1].decode()
        return News(position, reply[2], [_polled(line, position) for line in reply[3:]])

    async def change(self, generation: str, items: Sequence[Item]) -> int:
        """Make a change and give its revision; raises Conflict and Moved."""
        args: list[Any] = [*KINDS, generation, _nonce(), *self._caps]
        for item in items:
            expected = "" if item.expected is None else item.expected
            args += [item.verb, item.kind, item.name, expected, item.data]
        reply = await self._run(self._change, self._keys, args)
        if reply[0] == b"conflict":
            raise Conflict(reply[1].decode(), reply[2].decode(), int(reply[3]))
        return int(_ok(reply)[1])

    async def merge(self, generation: str, entries: Iterable[Entry]) -> int:
        """Give Redis what is newer than what it has, and say how much that was; raises Moved."""
        num_taken = 0
        for page in merge_pages(entries):
            args: list[Any] = [*KINDS, generation, _nonce(), *self._caps]
            for entry in page:
                data = entry.data if isinstance(entry, Document) else b""
                args += [entry.kind, entry.name, entry.revision, data]
            num_taken += int(_ok(await self._run(self._merge, self._keys, args))[1])
        return num_taken

    async def read(self, newest_revision: int) -> LocalCopy:
        """All of it; makes the store, above ``newest_revision``, where Redis has none.

        What changes meanwhile may be in it or not: ``poll`` from its position brings the rest.
        """
        args = [secrets.token_hex(8), _nonce(), newest_revision, MARGIN_MICROSECONDS]
        generation, position, gone = await self._run(self._begin, self._head, args)
        copy = LocalCopy(generation.decode(), position.decode())
        copy.apply(_tombstones(gone))
        for kind, key in self._hashes.items():
            cursor: int | None = None
            while cursor != 0:
                cursor, page = await self._page(key, cursor or 0)
                copy.apply(_document(kind, name.decode(), raw) for name, raw in page.items())
        return copy

    async def _page(self, key: str, cursor: int) -> tuple[int, dict[bytes, bytes]]:
        reply: Any = await self._link.run(lambda client: client.hscan(key, cursor, count=PAGE))
        return int(reply[0]), reply[1]

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self._link.run(lambda client: script.run(client, keys, args))


def merge_pages(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in pages of at most PAGE, and of MERGE_BYTES if one is not larger by itself."""
    page: list[Entry] = []
    num_bytes = 0
    for entry in entries:
        size = len(entry.data) if isinstance(entry, Document) else 0
        if page and (len(page) >= PAGE or num_bytes + size > MERGE_BYTES):
            yield page
            page, num_bytes = [], 0
        page.append(entry)
        num_bytes += size
    if page:
        yield page


def _ok(reply: list[Any]) -> list[Any]:
    if reply[0] != b"ok":
        raise Moved(reply[0].decode())
    return reply


def _document(kind: str, name: str, raw: bytes) -> Document:
    revision, _, data = raw.partition(b" ")
    return Document(kind, name, int(revision), data)


def _polled(line: Sequence[bytes], position: str) -> Entry:
    """A document, or since when there is none: at the latest since the last change."""
    kind, name, raw, gone = line
    if raw:
        return _document(kind.decode(), name.decode(), raw)
    revision = int(gone) if gone else int(position.partition("-")[0])
    return Tombstone(kind.decode(), name.decode(), revision)


def _tombstones(gone: list[bytes]) -> Iterable[Tombstone]:
    for member, revision in zip(gone[::2], gone[1::2], strict=True):
        kind, _, name = member.decode().partition(" ")
        yield Tombstone(kind, name, int(revision))


def _nonce() -> str:
    """Tells one stream's entries from those of another that got the same revision."""
    return str(secrets.randbits(52) + 1)
