"""A gateway's own copy of the store: what is read on every request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import nlargest
from operator import itemgetter
from types import MappingProxyType

from .documents import KINDS, Document, Entry, Tombstone

MAX_TOMBSTONES = 2000
"""Removals that are remembered, the newest; in Redis as here."""

Name = tuple[str, str]


class LocalCopy:
    """Documents and tombstones; of two entries for a name the one of the higher revision stays.

    ``generation`` is that of the Redis it was read from ("" before the first time), ``position``
    the last change of its stream that the copy has.
    """

    def __init__(self, generation: str = "", position: str = "0-0") -> None:
        self.generation = generation
        self.position = position
        self._documents: dict[str, dict[str, Document]] = {kind: {} for kind in KINDS}
        self._gone: dict[Name, int] = {}

    @property
    def synced_revision(self) -> int:
        """The revision up to which all changes are here; 0 before the first contact."""
        return int(self.position.partition("-")[0])

    @property
    def newest_revision(self) -> int:
        """The highest revision of all."""
        return max((entry.revision for entry in self.entries()), default=self.synced_revision)

    @property
    def counts(self) -> list[int]:
        """How many documents there are of each kind, in the order of ``KINDS``."""
        return [len(self._documents[kind]) for kind in KINDS]

    @property
    def forgotten_revision(self) -> int:
        """Removals up to this revision may be forgotten; 0: none is."""
        is_full = len(self._gone) >= MAX_TOMBSTONES
        return min(self._gone.values()) if is_full else 0

    def get(self, kind: str, name: str) -> Document | None:
        """The document of that name."""
        return self._documents[kind].get(name)

    def items(self, kind: str) -> Mapping[str, Document]:
        """All documents of a kind, by name."""
        return MappingProxyType(self._documents[kind])

    def revision(self, name: Name) -> int:
        """The revision of a name's document or tombstone; 0 for neither."""
        document = self._documents[name[0]].get(name[1])
        return max(document.revision if document else 0, self._gone.get(name, 0))

    def entries(self) -> Iterator[Entry]:
        """All documents, then all tombstones."""
        for documents in self._documents.values():
            yield from documents.values()
        for (kind, name), revision in self._gone.items():
            yield Tombstone(kind, name, revision)

    def clone(self) -> LocalCopy:
        """Another copy of the same."""
        other = LocalCopy(self.generation, self.position)
        other._documents = {kind: dict(named) for kind, named in self._documents.items()}
        other._gone = dict(self._gone)
        return other

    def newer_than(self, other: LocalCopy) -> list[Entry]:
        """What this copy knows that ``other`` does not, or has older."""
        return [
            entry
            for entry in self.entries()
            if entry.revision > other.revision((entry.kind, entry.name))
        ]

    def apply(self, entries: Iterable[Entry]) -> list[Name]:
        """Take what is newer than what is here; the names whose documents that changed."""
        changed = []
        for entry in entries:
            name = (entry.kind, entry.name)
            if entry.revision > self.revision(name) and self._take(entry):
                changed.append(name)
        if len(self._gone) > MAX_TOMBSTONES:
            newest = nlargest(MAX_TOMBSTONES, self._gone.items(), key=itemgetter(1))
            self._gone = dict(newest)
        return changed

    def _take(self, entry: Entry) -> bool:
        documents = self._documents[entry.kind]
        if isinstance(entry, Document):
            documents[entry.name] = entry
            return True
        self._gone[entry.kind, entry.name] = entry.revision
        return documents.pop(entry.name, None) is not None

    def differing_from(self, other: LocalCopy) -> list[Name]:
        """Names of documents that are not the same in both."""
        return [
            (kind, name)
            for kind in KINDS
            for name in {**self._documents[kind], **other._documents[kind]}
            if self.get(kind, name) != other.get(kind, name)
        ]
