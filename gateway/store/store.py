"""The fleet's documents: read here, written in Redis; nothing is lost when Redis loses it.

Reading never waits: it is from this gateway's copy, which a poll keeps up to date. What may happen
to Redis, and what the copy does then:

- away: reads go on, changes raise StoreDown;
- back and empty, or other than it was (a failover, a flush, evicted keys): the copy is compared
  with what is there, by revision. What it has newer, or what is missing there without a
  tombstone, it writes; all gateways may do so at once and end up equal, since of two revisions
  the higher one stays. A missing document is never read as a deletion: that needs a tombstone;
- a gateway that was away for more removals than are remembered can't tell a removed document
  from a lost one: it takes what is there.

A store that is made anew begins a minute above the newest revision known to its maker, so that
changes that it has not seen yet stay older than all that come now. Until every gateway that knew a
removal is gone with its file, nobody brings the document back.

Without Redis (a static list of replicas) the same store lives in this gateway's file alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ..fleet.connection import RedisDown, RedisLink
from ..fleet.redis_names import RedisNames
from .comparison import compare
from .documents import (
    MAX_CHANGE,
    Change,
    Conflict,
    Document,
    Entry,
    Guard,
    Item,
    Put,
    Removal,
    StoreDown,
    StoreError,
)
from .local_copy import LocalCopy, Name
from .remote import Moved, RemoteStore
from .snapshot import SnapshotFile

POLL_SECONDS = 0.2
SAVE_SECONDS = 1.0
"""The least time between two writes of the file."""
_ATTEMPTS = 4

Listener = Callable[[str, str], None]
Declare = Callable[[LocalCopy], Change]
"""What a declarative file asks for, against what is there."""

logger = logging.getLogger(__name__)


class Store:
    """One gateway's side of the store. ``link`` None: its own file is all there is.

    ``state_dir`` keeps a copy over restarts. ``declare`` is applied once, at the start.
    """

    def __init__(
        self,
        link: RedisLink | None,
        fleet: str,
        state_dir: Path | None = None,
        *,
        declare: Declare | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the state directory; raises StoreError."""
        self._link = link
        self._remote = RemoteStore(link, RedisNames(fleet)) if link else None
        self._file = SnapshotFile(state_dir, fleet) if state_dir else None
        self._declare = declare
        self._clock = clock
        self._copy = LocalCopy()
        self._listeners: list[Listener] = []
        self._lock = asyncio.Lock()
        self._is_saved = True
        self._saved_at = float("-inf")
        self._polled_at = time.monotonic()
        self.num_restored = 0
        """Entries that Redis had lost and this gateway gave back."""

    @property
    def is_up(self) -> bool:
        """Whether changes can be made now, as far as is known."""
        return self._link is None or self._link.is_up

    @property
    def is_shared(self) -> bool:
        """Whether other gateways may change it: there is a Redis, if only for the time away."""
        return self._remote is not None

    @property
    def seconds_behind(self) -> float:
        """How long ago all that was in Redis was here; 0 without Redis."""
        return 0.0 if self._remote is None else max(time.monotonic() - self._polled_at, 0.0)

    @property
    def generation(self) -> str:
        """Of the Redis that the copy was read from; "" before the first contact."""
        return self._copy.generation

    def get(self, kind: str, name: str) -> Document | None:
        """A document of this gateway's copy."""
        return self._copy.get(kind, name)

    def items(self, kind: str) -> Mapping[str, Document]:
        """All documents of a kind by name; not to be held over an await."""
        return self._copy.items(kind)

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` with kind and name after a document of the copy changed."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Load the file, meet Redis, apply what is declared; raises StoreError.

        A file that is no good stops a gateway only where it is all there is.
        """
        self._load()
        try:
            await self.refresh()
        except StoreDown as error:
            logger.warning("the store begins from this gateway's own copy: %s", error)
            self._declare_here()
        if self._remote is None:
            await self._start_alone()

    async def _start_alone(self) -> None:
        where = self._file.path if self._file else "memory only, and gone at the end"
        logger.warning("no Redis: tenants, keys and adapters are this gateway's own, in %s", where)
        async with self._lock:
            await self._apply_declared()

    async def run(self) -> None:
        """Poll, and keep the file up to date, until cancelled."""
        while True:
            try:
                await self.refresh()
            except StoreDown:
                pass  # the link tells of it
            except Exception:
                logger.exception("the store can't be polled")
            if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                await self.save()
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        """Write the file and let go of it."""
        await self.save()
        if self._file:
            self._file.close()

    async def change(
        self, puts: Sequence[Put], removals: Sequence[Removal] = (), guards: Sequence[Guard] = ()
    ) -> int:
        """Make a change, all or nothing, and give its revision.

        The copy has it when this returns. Raises Conflict, StoreDown (it is not known then whether
        it was made: send it again) and ValueError for what can't be stored.
        """
        items = Change(puts, removals, guards).items()
        if len(items) > MAX_CHANGE:
            raise ValueError(f"a change may name at most {MAX_CHANGE} documents")
        async with self._lock:
            return await self._commit(items)

    async def refresh(self) -> None:
        """Bring the copy up to date; raises StoreDown."""
        if self._remote is None:
            return
        async with self._lock:
            began = time.monotonic()
            try:
                await self._poll(self._remote)
                self._polled_at = began
                await self._apply_declared()
            except RedisDown as error:
                raise StoreDown(str(error)) from error

    async def save(self) -> None:
        """Write the file if the copy is newer; a failure is logged and tried again later."""
        if self._file is None or self._is_saved:
            return
        self._saved_at = time.monotonic()
        self._is_saved = True
        try:
            await asyncio.to_thread(self._file.write, self._file.encode(self._copy))
        except StoreError as error:
            self._is_saved = False
            logger.error("%s", error)

    async def _poll(self, remote: RemoteStore) -> None:
        try:
            news = await remote.poll(self._copy)
        except Moved:
            await self._resync(remote)
            return
        self._take(news.entries)
        self._copy.position = news.position
        if self._copy.counts != news.counts:
            logger.warning("Redis has lost some of the store, or this gateway has: comparing")
            await self._resync(remote)

    async def _resync(self, remote: RemoteStore) -> None:
        """Compare with all that is in Redis, give it what it lost, and take its state."""
        fresh, num_restored = await compare(remote, self._copy)
        self.num_restored += num_restored
        self._swap(fresh)

    async def _commit(self, items: Sequence[Item]) -> int:
        """Write and take over; the lock is held."""
        if self._remote is None:
            return await self._commit_alone(items)
        try:
            revision = await self._commit_to(self._remote, items)
        except RedisDown as error:
            raise StoreDown(str(error)) from error
        # Its place in the stream is left to the next poll, which brings what came between.
        self._take(item.entry(revision) for item in items if item.verb != "guard")
        return revision

    async def _commit_to(self, remote: RemoteStore, items: Sequence[Item]) -> int:
        for _ in range(_ATTEMPTS):
            try:
                return await remote.change(self._copy.generation, items)
            except Moved:
                await self._resync(remote)
        raise StoreDown("Redis was emptied again and again")

    async def _commit_alone(self, items: Sequence[Item]) -> int:
        for item in items:
            document = self._copy.get(item.kind, item.name)
            revision = document.revision if document else 0
            if item.expected not in (None, revision):
                raise Conflict(item.kind, item.name, revision)
        candidate = self._copy.clone()
        revision = self._next_revision()
        candidate.apply(item.entry(revision) for item in items if item.verb != "guard")
        candidate.position = f"{revision}-0"
        if self._file:
            try:
                await asyncio.to_thread(self._file.write, self._file.encode(candidate))
            except StoreError as error:
                raise StoreDown(str(error)) from error
        self._swap(candidate)
        self._is_saved = True
        return revision

    def _next_revision(self) -> int:
        return max(self._copy.newest_revision + 1, int(self._clock() * 1e6))

    async def _apply_declared(self) -> None:
        """What the declarative file asks for, once; the lock is held."""
        if self._declare is None:
            return
        items = self._declare(self._copy).items()
        if self._remote is not None:
            revisions = {item: self._copy.revision((item.kind, item.name)) for item in items}
            unknown = [item.entry(1) for item in items if not revisions[item]]
            if not await self._offer(self._remote, unknown):
                return  # against what is there now, at the next refresh
            items = [item for item in items if revisions[item]]
        rest = iter(items)
        while part := list(islice(rest, MAX_CHANGE)):
            await self._commit(part)
        self._declare = None

    async def _offer(self, remote: RemoteStore, entries: Sequence[Entry]) -> bool:
        """Give Redis what nobody has as far as is known: who does have it may come yet, and wins.

        For a tenant that is made anew is another one, and keys of the first don't open for it.
        False where Redis was emptied meanwhile. Raises RedisDown.
        """
        try:
            await remote.merge(self._copy.generation, entries)
        except Moved:
            await self._resync(remote)
            return False
        self._take(entries)
        return True

    def _declare_here(self) -> None:
        """The same while Redis is away, where a tenant that is unknown here may well be there.

        So each gets the lowest revision that counts here, and whatever Redis has newer wins. What
        then still differs from the file is applied at the first contact.
        """
        if self._declare is not None:
            items = self._declare(self._copy).items()
            copy = self._copy
            self._take([i.entry(copy.revision((i.kind, i.name)) + 1) for i in items])

    def _load(self) -> None:
        if self._file is None:
            return
        try:
            copy = self._file.read()
        except StoreError as error:
            if self._remote is None:
                self._file.close()
                raise
            logger.error("%s; it is kept as %s", error, self._file.set_aside())
            return
        if copy is not None:
            self._swap(copy)
            self._is_saved = True

    def _swap(self, copy: LocalCopy) -> None:
        changed = copy.differing_from(self._copy)
        is_same = (copy.generation, copy.position) == (self._copy.generation, self._copy.position)
        self._copy = copy
        self._is_saved = self._is_saved and is_same and not changed
        self._tell(changed)

    def _take(self, entries: Iterable[Entry]) -> None:
        changed = self._copy.apply(entries)
        self._is_saved = self._is_saved and not changed
        self._tell(changed)

    def _tell(self, changed: Iterable[Name]) -> None:
        for kind, name in changed:
            for listener in self._listeners:
                try:
                    listener(kind, name)
                except Exception:
                    logger.exception("a listener of the store failed on a %s", kind)
