"""The gateway's adapters, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from ..fleet.records import GatewayReport
from ..store.store import Store
from ..types import FleetSnapshot
from .admin import AdapterAdmin
from .bringing import Bringer
from .demand import DemandMeter
from .directory import AdapterDirectory
from .placer import Placer
from .registry import Registry
from .replica_client import ReplicaClient


@dataclass(frozen=True, slots=True)
class FleetAdapters:
    """What requests ask, and what admins change."""

    directory: AdapterDirectory
    admin: AdapterAdmin


def build_adapters(
    store: Store,
    session: aiohttp.ClientSession,
    secret: str,
    snapshot: Callable[[], FleetSnapshot],
    gateways: Callable[[], Mapping[str, GatewayReport]],
    gateway_id: str,
) -> FleetAdapters:
    """Everything over a store; ``snapshot`` and ``gateways`` are the view's."""
    registry, demand = Registry(store), DemandMeter()
    client = ReplicaClient(session, secret)
    bringer = Bringer(client, snapshot)
    placer = Placer(registry, bringer, demand, gateway_id, gateways, snapshot)
    directory = AdapterDirectory(registry, bringer, placer, demand)
    admin = AdapterAdmin(registry, bringer, client, directory, placer, snapshot)
    return FleetAdapters(directory, admin)
