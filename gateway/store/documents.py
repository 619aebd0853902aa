"""Documents of the store, and what a change of them is.

```
Conflict                a document is not of the revision that the change expects
StoreDown               nothing can be written now; reads go on
StoreError              the state directory or its file can't be used
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

KINDS = ("tenant", "key", "adapter", "alias")

MAX_CHANGE = 500
"""Documents in one change."""
MAX_DOCUMENT_BYTES = 256 << 10
MAX_NAME_BYTES = 512

Put = tuple[str, str, bytes, int | None]
"""Kind, name, data, and the revision that it must have before: 0 for none, None for any."""
Removal = tuple[str, str] | tuple[str, str, int | None]
"""Kind and name, and the revision that it must have, if that matters."""
Guard = tuple[str, str, int]
"""A document that is not written but must be of this revision; 0: must not be there."""


class Conflict(Exception):  # noqa: N818
    """A document has another revision than the change expects; nothing was written."""

    def __init__(self, kind: str, name: str, revision: int) -> None:
        super().__init__(f"{kind} {name!r} has revision {revision} by now")
        self.kind = kind
        self.name = name
        self.revision = revision


class StoreDown(Exception):  # noqa: N818
    """The store can't be written or asked now; whether a change was made is not known."""


class StoreError(Exception):
    """The state directory can't be used; the message names it or the file at fault."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document as of ``revision``; ``data`` is JSON, which may hold a key's digest."""

    kind: str
    name: str
    revision: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """That there is no such document since ``revision``."""

    kind: str
    name: str
    revision: int


Entry = Document | Tombstone


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a change: puts ``data``, removes, or only looks."""

    verb: str
    kind: str
    name: str
    expected: int | None = None
    data: bytes = field(default=b"", repr=False)

    def entry(self, revision: int) -> Entry:
        """What is there once the change is made."""
        if self.verb == "put":
            return Document(self.kind, self.name, revision, self.data)
        return Tombstone(self.kind, self.name, revision)


@dataclass(frozen=True, slots=True)
class Change:
    """Puts, removals and guards that are made all together or not at all."""

    puts: Sequence[Put] = ()
    removals: Sequence[Removal] = ()
    guards: Sequence[Guard] = ()

    def items(self) -> list[Item]:
        """All lines; raises ValueError for what can't be in a change."""
        items = [
            Item("put", kind, name, revision, data) for kind, name, data, revision in self.puts
        ]
        for kind, name, *expected in self.removals:
            items.append(Item("remove", kind, name, expected[0] if expected else None))
        items += [Item("guard", *guard) for guard in self.guards]
        for item in items:
            _check(item)
        if len({(item.kind, item.name) for item in items}) != len(items):
            raise ValueError("a change may name a document once")
        return items


def _check(item: Item) -> None:
    if item.kind not in KINDS:
        raise ValueError(f"{item.kind!r} is no kind; there are: {', '.join(KINDS)}")
    if not 0 < len(item.name.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"a name must be 1 to {MAX_NAME_BYTES} bytes")
    if item.verb == "put" and not 0 < len(item.data) <= MAX_DOCUMENT_BYTES:
        raise ValueError(f"a document must be 1 to {MAX_DOCUMENT_BYTES} bytes")
