"""The fleet's names of adapters and aliases, in the store: read at once, changed all or nothing.

Several gateways change them at the same time. Each change says which revisions it was made of, and
is made anew where one of them has moved on. A change that leans on another document (an alias on
its adapters, a name on being no alias) writes or guards that one too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import GatewayError
from ..fleet.aliases import AliasTarget
from ..fleet.versions import PinTier
from ..store.store import Store
from .names import not_there, taken, version_not_there
from .record_store import ADAPTER, ALIAS, Edit, RecordStore
from .records import AdapterRecord, AdapterVersion, AliasRecord


@dataclass(frozen=True, slots=True)
class Committed:
    """One name before and after a change; None where there was none, or is none now."""

    before: AdapterRecord | None
    after: AdapterRecord | None

    @property
    def changed(self) -> bool:
        """Whether another version answers."""
        old, new = self.before, self.after
        return old is None or new is None or old.current.number != new.current.number


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that names need; ``is_serving``: requests can get it now, not only a roll back."""

    version: AdapterVersion
    is_serving: bool
    pin: PinTier | None = None


class Registry:
    """Reads and changes. Raises GatewayError 503 where the store can't be written.

    ``max_older`` versions of a name are kept beside its current one. ``clock`` is Unix seconds.
    """

    def __init__(
        self, store: Store, max_older: int = 4, clock: Callable[[], float] = time.time
    ) -> None:
        self._records = RecordStore(store, self._on_change)
        self._max_older = max_older
        self._clock = clock
        self._wanted: dict[str, Wanted] | None = None

    def adapter(self, name: str) -> AdapterRecord | None:
        """A name's record."""
        return self._records.adapter(name)

    def alias(self, name: str) -> AliasRecord | None:
        """An alias's record."""
        return self._records.alias(name)

    def adapters(self) -> dict[str, AdapterRecord]:
        """All names."""
        return self._records.adapters()

    def aliases(self) -> dict[str, AliasRecord]:
        """All aliases."""
        return self._records.aliases()

    def aliases_of(self, adapter: str) -> list[str]:
        """Aliases with a target in that adapter."""
        return sorted(name for name, record in self.aliases().items() if record.leads_to(adapter))

    async def refresh(self) -> None:
        """Take in what other gateways have changed: an admin sees the last word."""
        await self._records.refresh()

    def wanted(self) -> dict[str, Wanted]:
        """Every version that is kept, by its id; not to be changed."""
        if self._wanted is None:
            self._wanted = self._find_wanted()
        return self._wanted

    async def put(
        self, name: str, version: AdapterVersion, pin: PinTier | None = None
    ) -> Committed:
        """Make a version what ``name`` answers with; the same bytes change nothing."""

        def change(edit: Edit, before: AdapterRecord | None) -> AdapterRecord:
            if self.alias(name) is not None:
                raise taken(name, "an alias")
            edit.guards.append((ALIAS, name, 0))
            record = before or AdapterRecord()
            if not (record.history and record.current.version_id == version.version_id):
                record = record.with_version(version)
                record = record.pruned(self._max_older, self._numbers_in_aliases(name))
            return record.pinned(pin or record.pin)

        return await self._change_adapter(name, change)

    def turned(self, name: str, number: int | None) -> AdapterRecord:
        """What a roll back would make of a name; raises GatewayError where it can't be."""
        return _turned(name, self.adapter(name), number)

    def versions_of(self, targets: Sequence[AliasTarget]) -> list[AdapterVersion]:
        """What targets are now; raises GatewayError 404 for one that is not there."""
        return [self._version_of(target) for target in targets]

    async def rollback(self, name: str, number: int | None) -> Committed:
        """Make an older version current; None is the one that was so before."""
        wanted = self.turned(name, number).current.number

        def change(_: Edit, before: AdapterRecord | None) -> AdapterRecord:
            turned = _turned(name, before, number)
            if turned.current.number != wanted:  # others were quicker, or it was made already
                turned = _turned(name, before, wanted)
            return turned

        return await self._change_adapter(name, change)

    async def pin(self, name: str, tier: PinTier | None) -> Committed:
        """Pin a name, or end that."""

        def change(_: Edit, before: AdapterRecord | None) -> AdapterRecord:
            if before is None:
                raise not_there(name, "adapter")
            return before.pinned(tier)

        return await self._change_adapter(name, change)

    async def delete(self, name: str) -> Committed:
        """Forget a name; raises GatewayError 409 while an alias points at it."""

        def change(edit: Edit, before: AdapterRecord | None) -> None:
            if before is None:
                raise not_there(name, "adapter")
            if aliases := self.aliases_of(name):
                raise GatewayError(
                    409,
                    f"The alias {aliases[0]!r} points at {name!r}; move or delete that first.",
                    param="name",
                    code="adapter_in_use",
                )
            # The name may come again, and its numbers then begin at 1 with other bytes.
            for alias, record in self.aliases().items():
                if (without := record.without_before(name)) is not record:
                    edit.puts.append(self._records.put_of(ALIAS, alias, without))

        return await self._change_adapter(name, change)

    async def put_alias(self, alias: str, targets: tuple[AliasTarget, ...]) -> AliasRecord:
        """Point an alias, new or not, at adapters that are there."""

        def change(edit: Edit) -> AliasRecord:
            if self.adapter(alias) is not None:
                raise taken(alias, "an adapter", "alias")
            return self._point(edit, alias, targets)

        return await self._change_alias(alias, change)

    async def rollback_alias(self, alias: str) -> AliasRecord:
        """Point an alias where it pointed before; raises GatewayError 409 without a before."""
        record = self.alias(alias)
        if record is None:
            raise not_there(alias, "alias", "alias")
        if record.previous is None:
            raise GatewayError(
                409,
                f"{alias!r} has not pointed anywhere else.",
                param="alias",
                code="no_earlier_version",
            )
        return await self.put_alias(alias, record.previous)

    async def delete_alias(self, alias: str) -> None:
        """Forget an alias."""

        def prepare(maybe_made: bool) -> Edit | None:
            if self.alias(alias) is None:
                if maybe_made:
                    return None
                raise not_there(alias, "alias", "alias")
            return Edit(removals=[(ALIAS, alias, self._records.revision(ALIAS, alias))])

        await self._records.commit(prepare)

    def _point(self, edit: Edit, alias: str, targets: tuple[AliasTarget, ...]) -> AliasRecord:
        edit.guards.append((ADAPTER, alias, 0))
        self.versions_of(targets)
        for name in dict.fromkeys(target.adapter for target in targets):
            record = self.adapter(name)
            assert record is not None
            # Written as it is: whoever deletes or prunes it now has to look at aliases again.
            edit.puts.append(self._records.put_of(ADAPTER, name, record))
        before = self.alias(alias)
        if before is not None:
            return before.pointed_at(targets)
        return AliasRecord(targets=targets, created=self._clock())

    def _version_of(self, target: AliasTarget) -> AdapterVersion:
        record = self.adapter(target.adapter)
        if record is None:
            raise not_there(target.adapter, "adapter", "targets")
        if target.version is None:
            return record.current
        version = record.find(target.version)
        if version is None:
            raise version_not_there(target.adapter, target.version, "targets")
        return version

    async def _change_alias(self, alias: str, change: Callable[[Edit], AliasRecord]) -> AliasRecord:
        after: list[AliasRecord] = []

        def prepare(maybe_made: bool) -> Edit:
            edit = Edit()
            after[:] = [change(edit)]
            edit.puts.append(self._records.put_of(ALIAS, alias, after[0]))
            return edit

        await self._records.commit(prepare)
        return after[0]

    async def _change_adapter(
        self,
        name: str,
        change: Callable[[Edit, AdapterRecord | None], AdapterRecord | None],
    ) -> Committed:
        done: list[Committed] = []

        def prepare(maybe_made: bool) -> Edit | None:
            edit, before = Edit(), self.adapter(name)
            if maybe_made and done and before == done[0].after:
                return None
            after = change(edit, before)
            done[:] = [Committed(before, after)]
            if after is None:
                edit.removals.append((ADAPTER, name, self._records.revision(ADAPTER, name)))
            elif after == before:
                return None
            else:
                edit.puts.append(self._records.put_of(ADAPTER, name, after))
            return edit

        await self._records.commit(prepare)
        return done[0]

    def _on_change(self) -> None:
        self._wanted = None

    def _numbers_in_aliases(self, name: str) -> set[int]:
        return {number for alias in self.aliases().values() for number in alias.numbers_of(name)}

    def _find_wanted(self) -> dict[str, Wanted]:
        aliases = list(self.aliases().values())
        targets: set[tuple[str, int | None]] = {
            (target.adapter, target.version) for record in aliases for target in record.targets
        }
        wanted: dict[str, Wanted] = {}
        for name, record in self.adapters().items():
            for version in record.versions:
                is_current = version.number == record.history[-1]
                is_serving = is_current or (name, version.number) in targets
                pin = record.pin if is_current else None
                new = Wanted(version, is_serving, pin)
                wanted[version.version_id] = _stronger(wanted.get(version.version_id), new)
        return wanted


def _stronger(one: Wanted | None, other: Wanted) -> Wanted:
    """Of two names that need the same version: what both need."""
    if one is None:
        return other
    pins: Sequence[PinTier | None] = (one.pin, other.pin)
    pin: PinTier | None = "device" if "device" in pins else "host" if "host" in pins else None
    return Wanted(one.version, one.is_serving or other.is_serving, pin)


def _turned(name: str, record: AdapterRecord | None, number: int | None) -> AdapterRecord:
    """A name's record with another version current; raises GatewayError where there is none."""
    if record is None:
        raise not_there(name, "adapter")
    if number is None:
        if (turned := record.rolled_back()) is None:
            raise GatewayError(
                409,
                f"{name!r} has no version before its current one.",
                param="version",
                code="no_earlier_version",
            )
        return turned
    if record.find(number) is None:
        kept = ", ".join(str(version.number) for version in record.versions)
        raise version_not_there(name, number, "version", f"; kept: {kept}")
    return record.turned_to(number)
