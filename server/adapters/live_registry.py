"""The registry as it is served: every change written, shown in the catalog, cleaned up after."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...engine.adapter_types import FreedAdapter
from ..catalog import AdapterVersion, Catalog, ServedModel
from ..errors import ApiError
from .engine_adapters import EngineAdapters
from .registry import Registry
from .state import StateDirectory, StateError
from .text import AdapterText

logger = logging.getLogger(__name__)

T = TypeVar("T")

Change = Callable[[Registry], Registry]
Settling = asyncio.Task[FreedAdapter | None]


@dataclass(frozen=True, slots=True)
class Committed:
    """A change that was made; ``settling`` are the digests that nobody needs any more."""

    before: Registry
    after: Registry
    settling: Mapping[str, Settling]


@dataclass(frozen=True, slots=True)
class Claim:
    """A version in hand: until ``LiveRegistry.drop`` its files and its place in the engine stay."""

    digest: str
    text_digest: str | None


class LiveRegistry:
    """Owns the registry, and with it what catalog, engine and disk hold of adapters.

    A version is *serving* while a request can get it: then the engine has it. Versions that are
    kept for a roll back have only their files. What is neither goes when its last lease ends.
    ``failures`` say of a digest why it can't be served although it should be.
    """

    def __init__(self, catalog: Catalog, engine: EngineAdapters, state: StateDirectory) -> None:
        self.registry = Registry()
        self.catalog = catalog
        self.engine = engine
        self.state = state
        self.failures: dict[str, str] = {}
        self.texts: dict[str, AdapterText] = {}
        self._lock = asyncio.Lock()
        self._claims: Counter[str] = Counter()
        self._serving: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._kinds: dict[str, str] = {}
        self._settling: dict[str, Settling] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def claim(self, digest: str, text_digest: str | None) -> Claim:
        """Keep a version's files, and its place in the engine, whatever else changes."""
        claim = Claim(digest, text_digest)
        self._claims.update(_digests(claim))
        return claim

    async def drop(self, claim: Claim) -> None:
        """End a claim; what nobody else needs is gone then, but for what requests still hold."""
        self._claims.subtract(_digests(claim))
        for digest in _digests(claim):
            if not self._claims[digest]:
                del self._claims[digest]
        await self._drop_texts({claim.text_digest})
        if not self.is_needed(claim.digest):
            settling = self.settle(claim.digest)
            if not self.catalog.leases.count(claim.digest):
                await asyncio.shield(settling)

    @property
    def needed(self) -> set[str]:
        """Digests that an engine that takes over has to have."""
        return {digest for digest in (*self._serving, *self._claims) if digest in self.engine}

    async def commit(self, change: Change) -> Committed:
        """Write ``change`` of the registry, then show it.

        Raises what ``change`` does, and ApiError where it can't be written; then nothing has
        changed. A call that is cancelled goes on behind the caller's back.
        """
        return await asyncio.shield(self.background(self._commit(change)))

    async def _commit(self, change: Change) -> Committed:
        async with self._lock:
            before, after = self.registry, change(self.registry)
            if after is before:
                return Committed(before, after, {})
            try:
                await asyncio.to_thread(self.state.write, after)
            except StateError as error:
                raise ApiError(
                    str(error), status=500, type="server_error", code="state_not_written"
                ) from error
            settling = self.show(after)
        await self._drop_texts({*self.texts, *_texts_of_changed(before, after)})
        return Committed(before, after, settling)

    def show(self, after: Registry) -> dict[str, Settling]:
        """Make a registry what requests see, in one step; returns what settles after it."""
        before, self.registry = self.registry, after
        old, new = _by_name(before), _by_name(after)
        for alias in before.aliases.keys() - after.aliases.keys():
            self.catalog.remove_alias(alias)
        for name in before.adapters.keys() - after.adapters.keys():
            self.catalog.remove(name)
        for name, record in after.adapters.items():
            if before.adapters.get(name) is not record or old.get(name) != new[name]:
                self._show_adapter(name, new[name])
        for alias, entry in after.aliases.items():
            if before.aliases.get(alias) is not entry:
                self.catalog.put_alias(alias, entry.targets, int(entry.created))
        serving = frozenset(version.digest for _, version in after.all_serving())
        self._kinds = {v.digest: v.source.kind for v in after.all_versions()}
        kept = frozenset(self._kinds)
        gone = (self._serving - serving) | (self._kept - kept)
        self._serving, self._kept = serving, kept
        return {digest: self.settle(digest) for digest in gone}

    def show_again(self, digests: Iterable[str]) -> None:
        """Show the names of these digests, of which something else than the registry changed."""
        changed = set(digests)
        for name, versions in _by_name(self.registry).items():
            if changed.intersection(version.digest for version in versions):
                self._show_adapter(name, versions)

    def _show_adapter(self, name: str, versions: list[AdapterVersion]) -> None:
        current = self.registry.adapters[name].current
        models = {v.number: self._model(name, v) for v in versions if self.can_serve(v)}
        if current.number in models:
            self.catalog.put(name, models, current.number)
        else:
            self.catalog.fail(name, models)

    def can_serve(self, version: AdapterVersion) -> bool:
        """Whether requests can be answered with a version now."""
        has_text = version.text_digest is None or version.text_digest in self.texts
        return version.digest in self.engine and has_text

    def _model(self, name: str, version: AdapterVersion) -> ServedModel:
        text = None if version.text_digest is None else self.texts[version.text_digest]
        return ServedModel(
            name=name,
            root=version.source.location,
            digest=version.digest,
            chat_template=None if text is None else text.chat_template,
            tokenizer=None if text is None else text.tokenizer,
            version=version.number,
            vocab_size=version.facts.vocab_size,
            created=int(version.created),
            text_digest=version.text_digest,
            uses_base_prefix=version.facts.uses_base_prefix,
        )

    def source_kind(self, digest: str) -> str:
        """What a version was made of, for metrics; ``new`` of one that no name has yet."""
        return self._kinds.get(digest, "new")

    def settle(self, digest: str) -> Settling:
        """Give back what nobody needs of a digest, once its last lease has ended.

        The task's result is what the engine freed.
        """
        task = self._settling.get(digest)
        if task is None:
            task = self._settling[digest] = self.background(self._settle(digest))
        return task

    async def _settle(self, digest: str) -> FreedAdapter | None:
        freed: FreedAdapter | None = None
        trash: list[Path] = []
        try:
            if not self.is_needed(digest):
                await self.catalog.leases.wait_idle(digest)
            async with self.engine.turn(digest):
                if not self.is_needed(digest):
                    freed = await self.engine.remove_now(digest)
                if not (digest in self._kept or digest in self._claims):
                    self.failures.pop(digest, None)
                    places = (self.state.formatted(digest), self.state.upload(digest))
                    trash = [gone for place in places if (gone := self.state.move_out(place))]
        finally:
            del self._settling[digest]  # what becomes unneeded from here on settles anew
        await self._remove(trash)
        return freed

    def is_needed(self, digest: str) -> bool:
        """Whether a request can get these bytes, or somebody has them in hand."""
        return digest in self._serving or digest in self._claims

    async def _drop_texts(self, text_digests: set[str | None]) -> None:
        """Forget those of which nobody has a version or a claim any more."""
        if text_digests <= {None}:
            return
        trash: list[Path] = []
        served = {version.text_digest for _, version in self.registry.all_serving()}
        kept = {version.text_digest for version in self.registry.all_versions()}
        for digest in text_digests:
            if digest is None or digest in served or digest in self._claims:
                continue
            self.texts.pop(digest, None)
            if digest not in kept and (gone := self.state.move_out(self.state.text(digest))):
                trash.append(gone)
        await self._remove(trash)

    async def _remove(self, trash: list[Path]) -> None:
        for path in trash:
            await asyncio.to_thread(self.state.remove, path)

    @contextmanager
    def workroom(self) -> Iterator[Path]:
        """An empty directory for a put, on the file system of the state; gone afterwards."""
        path = self.state.new_work()
        try:
            yield path
        finally:
            if (gone := self.state.move_out(path)) is not None:
                self.background(self._remove([gone]))

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something to its end, whoever stops waiting for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("adapter work ended with %r", error)

    async def close(self) -> None:
        """End what runs in the background; once the engine has stopped, for some wait for it."""
        while self._tasks:
            for task in self._settling.values():
                task.cancel()  # it may wait for a request without end
            await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)


def _digests(claim: Claim) -> list[str]:
    return [claim.digest] if claim.text_digest is None else [claim.digest, claim.text_digest]


def _texts_of_changed(before: Registry, after: Registry) -> Iterator[str | None]:
    """Of the versions of names that are not what they were."""
    for name, record in before.adapters.items():
        if after.adapters.get(name) is not record:
            yield from (version.text_digest for version in record.versions)


def _by_name(registry: Registry) -> dict[str, list[AdapterVersion]]:
    """The serving versions of each adapter."""
    versions: dict[str, list[AdapterVersion]] = {}
    for name, version in registry.all_serving():
        versions.setdefault(name, []).append(version)
    return versions
