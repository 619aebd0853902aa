"""What model names stand for now, for whom; and what is missing at a replica is brought there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..errors import GatewayError
from ..fleet.aliases import pick_target
from ..fleet.records import AdapterPlace
from ..fleet.versions import FLEET_PREFIX, is_fleet_name
from ..types import Caller, FleetSnapshot, ReplicaView, Target
from .bringing import Bringer
from .demand import DemandMeter
from .placer import Placer
from .records import AdapterVersion
from .registry import Registry
from .replica_client import ReplicaFailed

MAX_SHOWN = 200
TRUSTED_SECONDS = 5.0
"""For so long a replica is taken at its word that it has a version, before its report says so."""
MAX_TRUSTED = 4096

Places = Mapping[str, AdapterPlace]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One name for ``/v1/models``; ``parent`` is a base name, ``created`` Unix seconds."""

    id: str
    parent: str | None = None
    created: int | None = None
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class _Names:
    """What the replicas of a snapshot bring: base names, and adapters of their own."""

    replicas: tuple[ReplicaView, ...]
    bases: dict[str, int]
    own: dict[str, AdapterPlace]


class AdapterDirectory:
    """Names to targets. Reading never waits; only ``ensure`` speaks to a replica."""

    def __init__(
        self,
        registry: Registry,
        bringer: Bringer,
        placer: Placer,
        demand: DemandMeter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._bringer = bringer
        self._placer = placer
        self._demand = demand
        self._clock = clock
        self._names: _Names | None = None
        self._own: dict[str, tuple[Places, Places]] = {}
        self._trusted: dict[tuple[str, str, str], float] = {}

    def resolve(
        self, caller: Caller, model: str | None, split_key: str, snapshot: FleetSnapshot
    ) -> Target:
        """What answers a caller's ``model``; ``split_key`` decides within a split alias.

        Raises GatewayError 400 without a model, 404 for one that is not there or not for this
        caller: the two can't be told apart.
        """
        if model is None:
            raise GatewayError(
                400, "model: is required", param="model", code="missing_required_parameter"
            )
        name = _allowed(caller, model)
        target = None if name is None else self._find(model, name, split_key, snapshot)
        if target is None:
            raise _unknown(model)
        return target

    def models(self, caller: Caller, snapshot: FleetSnapshot) -> list[ModelEntry]:
        """All that a caller may ask: base names first, then the others by name."""
        names = self._names_of(snapshot)
        shown = self._all_names(names) if caller.models is None else caller.models.keys()
        parent = next(iter(names.bases), None)
        entries = [self._entry(caller, name, parent, names) for name in shown]
        found = [entry for entry in entries if entry is not None]
        return sorted(found, key=lambda entry: (entry.parent is not None, entry.id))

    def default_model(self, caller: Caller, snapshot: FleetSnapshot) -> str | None:
        """What a caller calls the first base that it may ask."""
        bases = self._names_of(snapshot).bases
        if caller.models is None:
            return next(iter(bases), None)
        return next((name for name, meant in caller.models.items() if meant in bases), None)

    def base_names(self, snapshot: FleetSnapshot) -> set[str]:
        """Names of the base model, which nobody else can have."""
        return set(self._names_of(snapshot).bases)

    def places(self, target: Target, snapshot: FleetSnapshot) -> list[ReplicaView]:
        """The replicas that have a target now."""
        found = [(r, r.places.get(target.wire_name)) for r in snapshot.replicas]
        return [r for r, place in found if place is not None and place.error is None]

    async def ensure(self, target: Target, replica: ReplicaView, *, anew: bool = False) -> None:
        """Have a target at a replica; raises GatewayError 503 where it can't be had there.

        ``anew``: the replica has just said that it is not there, whatever its report says.
        """
        if target.digest is None:
            return
        place = replica.places.get(target.wire_name)
        if not anew and place is not None and place.error is None:
            return
        version = self._placer.version_of(target.wire_name.removeprefix(FLEET_PREFIX))
        if not target.in_registry or version is None:
            raise _not_available(target)
        key = (replica.replica_id, replica.report.epoch, version.version_id)
        if not anew and self._clock() - self._trusted.get(key, -1e9) < TRUSTED_SECONDS:
            return
        try:
            await self._bringer.bring(version, replica)
        except ReplicaFailed as error:
            raise _not_available(target) from error
        if len(self._trusted) >= MAX_TRUSTED:
            self._trusted.clear()
        self._trusted[key] = self._clock()

    def note_demand(self, target: Target, num_tokens: int = 0) -> None:
        """A request of about so many tokens is for this target."""
        if target.in_registry:
            self._demand.note(target.wire_name.removeprefix(FLEET_PREFIX), num_tokens)

    def demand(self) -> dict[str, float]:
        """What this gateway sees asked for, in tokens a second by version id."""
        return self._demand.busiest()

    async def run(self) -> None:
        """Keep versions where they belong, until cancelled."""
        await self._placer.run()

    def _find(
        self, model: str, name: str, split_key: str, snapshot: FleetSnapshot
    ) -> Target | None:
        names = self._names_of(snapshot)
        if is_fleet_name(name):
            return None  # nobody's word: it would lead past the tenants' names
        if name in names.bases:
            return Target(name=model, wire_name=name)
        version = self._version(name, split_key)
        if version is not None:
            return Target(
                name=model,
                wire_name=version.wire_name,
                digest=version.digest,
                uses_base_prefix=version.uses_base_prefix,
                in_registry=True,
                label=name,
            )
        place = names.own.get(name)
        if place is None or self._registry.alias(name) is not None:
            return None
        return Target(
            name=model,
            wire_name=name,
            digest=place.digest,
            uses_base_prefix=place.uses_base_prefix,
            label=name,
        )

    def _version(self, name: str, split_key: str) -> AdapterVersion | None:
        number: int | None = None
        if (alias := self._registry.alias(name)) is not None:
            target = pick_target(name, alias.targets, split_key)
            name, number = target.adapter, target.version
        record = self._registry.adapter(name)
        if record is None:
            return None
        return record.current if number is None else record.find(number)

    def _all_names(self, names: _Names) -> Iterable[str]:
        return {
            **names.bases,
            **self._registry.adapters(),
            **self._registry.aliases(),
            **names.own,
        }

    def _entry(
        self, caller: Caller, model: str, parent: str | None, names: _Names
    ) -> ModelEntry | None:
        name = _allowed(caller, model)
        if name is None or is_fleet_name(name):
            return None
        longest = max(names.bases.values(), default=None)
        if name in names.bases:
            return ModelEntry(model, None, None, names.bases[name])
        if (version := self._version(name, "")) is not None:
            return ModelEntry(model, parent or "base", int(version.created), longest)
        if name in names.own:
            return ModelEntry(model, parent or "base", None, longest)
        return None

    def _names_of(self, snapshot: FleetSnapshot) -> _Names:
        """Found anew only when a replica's names are others: loads change all the time."""
        if self._names is None or not _same_names(self._names.replicas, snapshot.replicas):
            self._names = self._names_in(snapshot)
        return self._names

    def _names_in(self, snapshot: FleetSnapshot) -> _Names:
        bases: dict[str, int] = {}
        for replica in snapshot.replicas:
            for name in replica.report.models:
                bases[name] = max(bases.get(name, 0), replica.report.max_model_len)
        found = {replica.replica_id: self._own_of(replica) for replica in snapshot.replicas}
        self._own = found
        own: dict[str, AdapterPlace] = {}
        for _, places in found.values():
            for name, place in places.items():
                if name not in bases:
                    own.setdefault(name, place)
        return _Names(snapshot.replicas, bases, own)

    def _own_of(self, replica: ReplicaView) -> tuple[Places, Places]:
        """A replica's places, and those of them that are its own and can be served.

        Most of a fleet's are versions, and of several replicas one changes at a time.
        """
        known = self._own.get(replica.replica_id)
        if known is not None and known[0] is replica.places:
            return known
        return replica.places, {
            name: place
            for name, place in replica.places.items()
            if not (is_fleet_name(name) or place.error)
        }


def _same_names(old: tuple[ReplicaView, ...], new: tuple[ReplicaView, ...]) -> bool:
    return len(old) == len(new) and all(
        one is other or (one.places is other.places and one.report.models == other.report.models)
        for one, other in zip(old, new, strict=True)
    )


def _allowed(caller: Caller, model: str) -> str | None:
    """The fleet's name of what a caller calls ``model``; None where it has no such name."""
    return model if caller.models is None else caller.models.get(model)


def _unknown(model: str) -> GatewayError:
    return GatewayError(
        404,
        f"The model {model[:MAX_SHOWN]!r} does not exist. /v1/models lists those that do.",
        param="model",
        code="model_not_found",
    )


def _not_available(target: Target) -> GatewayError:
    return GatewayError(
        503,
        f"The model {target.name[:MAX_SHOWN]!r} can't be brought to a replica now.",
        param="model",
        code="model_not_available",
        headers={"retry-after": "1"},
    )
