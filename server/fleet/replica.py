"""What a server has beside the others' parts when it belongs to a fleet."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...gateway.fleet.records import ReplicaReport
from ..adapters.manager import AdapterManager
from ..catalog import Catalog
from ..config import ServeConfig
from ..gate import Gate
from ..supervisor import EngineSupervisor
from .keys import PrefixKeys
from .ledger import RequestLedger
from .load_times import LoadTimes
from .options import FleetOptions, ReplicaIdentity
from .place_book import PlaceBook
from .places import adapter_places
from .reporter import Reporter, ReportSources
from .versions_api import FleetAdapters, build_fleet_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplica:
    """One replica's parts; ``ledger`` knows the requests that gateways sent here."""

    options: FleetOptions
    identity: ReplicaIdentity
    reporter: Reporter
    places: PlaceBook
    adapters: FleetAdapters
    keys: PrefixKeys | None = None
    ledger: RequestLedger = field(default_factory=RequestLedger)

    @property
    def replica_id(self) -> str:
        """Its name in the fleet."""
        return self.identity.replica_id

    def report(self) -> ReplicaReport:
        """How it stands now."""
        return self.reporter.report(0 if self.keys is None else self.keys.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaParts:
    """What a replica is made from."""

    config: ServeConfig
    identity: ReplicaIdentity
    catalog: Catalog
    manager: AdapterManager
    supervisor: EngineSupervisor
    gate: Gate
    blobs: Path
    fingerprint: str
    epoch: str
    keys: PrefixKeys | None = None


def build_replica(parts: ReplicaParts) -> FleetReplica | None:
    """The fleet's part of a server; None without a fleet secret."""
    options, supervisor = parts.config.fleet, parts.supervisor
    if options.secret is None:
        return None
    places = PlaceBook(parts.epoch, partial(adapter_places, parts.manager, parts.catalog))
    load_times = LoadTimes()
    supervisor.subscribe_adapters(places.note)
    supervisor.subscribe_adapters(load_times.note)
    sources = ReportSources(
        identity=parts.identity,
        epoch=parts.epoch,
        fingerprint=parts.fingerprint,
        engine=parts.config.engine,
        catalog=parts.catalog,
        supervisor=supervisor,
        gate=parts.gate,
        places=places,
        load_times=load_times,
    )
    config = parts.config
    adapters = build_fleet_adapters(
        parts.manager, parts.catalog, config.sources, config.limits, parts.blobs, options.secret
    )
    adapters.versions.subscribe(places.wake)
    return FleetReplica(
        options=options,
        identity=parts.identity,
        reporter=Reporter(sources),
        places=places,
        adapters=adapters,
        keys=parts.keys,
    )
