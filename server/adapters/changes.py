"""Versions that come, change and go: put, roll back, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...engine.adapter_types import FreedAdapter, PinTier
from ...gateway.fleet.versions import is_fleet_name
from ..catalog import AdapterVersion
from ..errors import ApiError
from .intake import AdapterIntake, IsKnown, Prepared
from .live_registry import Claim, Committed, LiveRegistry
from .names import changed_meanwhile, check_new_name, not_there, taken
from .registry import AdapterRecord, Registry
from .results import PutResult, RemovalResult
from .revival import Revival
from .sources import AdapterSource
from .tiers import AdapterTiers
from .turns import Turns

MAX_PARALLEL_PUTS = 8

NameOf = Callable[[str, str | None], str]
"""Of a digest and a text digest: the name of the version that has them."""


class AdapterChanges:
    """Changes what names answer with. Puts of one name run one after the other.

    Who stops waiting for a put ends it as long as nothing of it is to be seen; from then on it
    goes on to its end. ``errors`` is the last failure of each name.
    """

    def __init__(
        self,
        live: LiveRegistry,
        intake: AdapterIntake,
        tiers: AdapterTiers,
        max_older: int,
    ) -> None:
        self._live = live
        self._intake = intake
        self._tiers = tiers
        self._max_older = max_older
        self._revival = Revival(live, intake)
        self._room = asyncio.Semaphore(MAX_PARALLEL_PUTS)
        self._turns = Turns()

    async def put(
        self, name: str, source: AdapterSource, staged: Path | None, pin: PinTier | None
    ) -> PutResult:
        """Fetch, check and format an adapter, then make it what ``name`` answers with."""
        self._check_free(name, self._live.registry)
        with self._noted(name), _storing():
            async with self._turns.of(name), self._room:
                with self._live.workroom() as work:
                    prepared = await self._intake.prepare(source, work, staged=staged)
                    assert prepared is not None, "nothing is known to make it needless"
                    return await self._take_in(name, source, prepared, pin)

    async def put_by_operator(
        self, name: str, source: AdapterSource, turn: Awaitable[object]
    ) -> PutResult | None:
        """As ``put``, of what the command line names; it takes its place after ``turn``.

        None, and nothing is done, where the bytes are one of the versions of a name that answers.
        """
        self._check_free(name, self._live.registry)
        with _storing(), self._live.workroom() as work:
            async with self._room:
                prepared = await self._intake.prepare(
                    source, work, by_operator=True, is_known=self._knows(name)
                )
            await turn
            if prepared is None:
                return None
            return await self._take_in(name, source, prepared, None)

    async def put_by_content(self, source: AdapterSource, name_of: NameOf) -> str:
        """As ``put``, under the name that ``name_of`` gives its digests, or raises for; that name.

        What such a name answers with never changes.
        """
        with _storing(), self._live.workroom() as work:
            async with self._room:
                prepared = await self._intake.prepare(source, work)
                assert prepared is not None, "nothing is known to make it needless"
                name = name_of(prepared.facts.digest, prepared.text_digest)
                assert is_fleet_name(name)
                async with self._turns.of(name):
                    await self._take_in(name, source, prepared, None)
                return name

    def _knows(self, name: str) -> IsKnown:
        record = self._live.registry.adapters.get(name)
        if record is None or not self._live.can_serve(record.current):
            return lambda digest, text_digest: False
        known = {(version.digest, version.text_digest) for version in record.versions}
        return lambda digest, text_digest: (digest, text_digest) in known

    async def _take_in(
        self, name: str, source: AdapterSource, prepared: Prepared, pin: PinTier | None
    ) -> PutResult:
        """From the workroom to the names, in one piece: nobody who leaves can interrupt it."""
        live, state = self._live, self._live.state
        digest, text_digest = prepared.facts.digest, prepared.text_digest
        claim = live.claim(digest, text_digest)
        moves = [(prepared.file, state.formatted(digest))]
        if prepared.text is not None:
            moves.append((prepared.text_files, state.text(prepared.text.text_digest)))
            live.texts[prepared.text.text_digest] = prepared.text
        if prepared.original is not None and state.keeps_uploads:
            moves.append((prepared.original, state.upload(digest)))
        try:
            for origin, place in moves:
                state.move_in(origin, place)
        except OSError:
            await live.drop(claim)
            raise
        version = AdapterVersion(0, digest, text_digest, source, time.time(), prepared.facts)
        places = [place for _, place in moves]
        work = self._finish_put(name, version, claim, places, pin)
        return await asyncio.shield(live.background(work))

    async def _finish_put(
        self,
        name: str,
        version: AdapterVersion,
        claim: Claim,
        places: Sequence[Path],
        pin: PinTier | None,
    ) -> PutResult:
        live, digest = self._live, version.digest
        was_failing = digest in live.failures
        try:
            await asyncio.to_thread(live.state.flush, *places)
            await live.engine.add(digest)
            if pin is not None:
                await self._tiers.pin_new(digest, pin)
            try:
                committed = await live.commit(lambda now: self._with_put(now, name, version, pin))
            except ApiError:
                await self._tiers.follow(name, digest)
                raise
            live.failures.pop(digest, None)
            if was_failing:
                live.show_again([digest])
            await self._tiers.settle(name, committed)
        finally:
            await live.drop(claim)
        result = _put_result(name, committed)
        return replace(result, changed=True) if was_failing else result

    def _with_put(
        self, registry: Registry, name: str, version: AdapterVersion, pin: PinTier | None
    ) -> Registry:
        """The registry with a version that has just come as ``name``'s current one."""
        if not is_fleet_name(name):
            self._check_free(name, registry)
        record = registry.adapters.get(name) or AdapterRecord.empty()
        if not (record.history and record.current.has_bytes_of(version)):
            record = record.with_version(replace(version, number=record.next_number))
            record = record.pruned(self._max_older, registry.numbers_in_aliases(name))
        elif pin in (None, record.pin):
            return registry
        return registry.with_adapter(name, replace(record, pin=pin or record.pin))

    def _check_free(self, name: str, registry: Registry) -> None:
        check_new_name(name, self._live.catalog)
        if name in registry.aliases:
            raise taken(name, "an alias")

    async def rollback(self, name: str, number: int | None) -> PutResult:
        """Make an older version current again; None is the one that was so before."""
        version = _turned(self._live.registry, name, number).current
        claim = self._live.claim(version.digest, version.text_digest)
        work = self._live.background(self._finish_rollback(name, number, version, claim))
        with self._noted(name):
            return await asyncio.shield(work)

    async def _finish_rollback(
        self, name: str, number: int | None, version: AdapterVersion, claim: Claim
    ) -> PutResult:
        live = self._live

        def change(now: Registry) -> Registry:
            turned = _turned(now, name, number)
            if turned.current.number != version.number:  # others were quicker
                turned = _turned(now, name, version.number)
            if not turned.current.has_bytes_of(version):
                raise changed_meanwhile(name)
            return now.with_adapter(name, turned).with_facts(version.digest, facts)

        try:
            facts = await self._revival.make_ready(version)
            committed = await live.commit(change)
            live.show_again([version.digest])
            await self._tiers.settle(name, committed)
        finally:
            await live.drop(claim)
        return _put_result(name, committed)

    async def delete(self, name: str, wait: float) -> RemovalResult:
        """Forget a name at once; wait up to ``wait`` seconds for its memory."""
        committed = await self._live.commit(lambda now: _without(now, name))
        self._tiers.errors.pop(name, None)
        settling = committed.settling
        if settling:
            await asyncio.wait(settling.values(), timeout=wait)
        done = [task for task in settling.values() if task.done()]
        is_done = len(done) == len(settling)
        return RemovalResult(
            name,
            done=is_done,
            leases=sum(map(self._live.catalog.leases.count, settling)),
            freed=_sum_of(task.result() for task in done) if is_done else None,
        )

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Keep what fails as the name's last error, if there is such a name."""
        try:
            yield
        except Exception as error:
            if name in self._live.registry.adapters:
                self._tiers.errors[name] = str(error)
            raise


@contextmanager
def _storing() -> Iterator[None]:
    """A disk that is full is neither the adapter's nor the client's fault."""
    try:
        yield
    except TimeoutError:  # which is an OSError too
        raise
    except OSError as error:
        raise ApiError(
            f"The state directory can't be written: {error.strerror or error}.",
            status=500,
            type="server_error",
            code="state_not_written",
        ) from error


def _turned(registry: Registry, name: str, number: int | None) -> AdapterRecord:
    """A name's record with another version current; raises ApiError where there is none."""
    record = registry.adapters.get(name)
    if record is None:
        raise not_there(name, "adapter")
    if number is None:
        if (turned := record.rolled_back()) is None:
            raise ApiError(
                f"{name!r} has no version before its current one.",
                status=409,
                param="version",
                code="no_earlier_version",
            )
        return turned
    if record.find(number) is None:
        kept = ", ".join(str(version.number) for version in record.versions)
        raise ApiError(
            f"version: {name!r} has no version {number}; kept: {kept}",
            status=404,
            param="version",
            code="version_not_found",
        )
    return record.turned_to(number)


def _without(registry: Registry, name: str) -> Registry:
    """The registry without a name; raises ApiError while an alias points at it."""
    if name not in registry.adapters:
        raise not_there(name, "adapter")
    if aliases := registry.aliases_of(name):
        raise ApiError(
            f"The alias {aliases[0]!r} points at {name!r}; move or delete that first.",
            status=409,
            param="name",
            code="adapter_in_use",
        )
    return registry.without_adapter(name)


def _put_result(name: str, committed: Committed) -> PutResult:
    old = committed.before.adapters.get(name)
    version = committed.after.adapters[name].current
    changed = old is None or old.current.number != version.number
    return PutResult(version, created=old is None, changed=changed)


def _sum_of(freed: Iterable[FreedAdapter | None]) -> FreedAdapter | None:
    """What the engine freed in all; None where it had nothing."""
    known = [each for each in freed if each is not None]
    if not known:
        return None
    return FreedAdapter(
        device_bytes=sum(each.device_bytes for each in known),
        host_bytes=sum(each.host_bytes for each in known),
    )
