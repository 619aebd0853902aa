"""What one look at the fleet found, whether through Redis or at the replicas themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..fleet.records import AdapterPlaces, GatewayReport, ReplicaReport

T = TypeVar("T", ReplicaReport, GatewayReport)

PlacesVersion = tuple[str, int]
"""Epoch and version of what was last read of a replica's places."""


@dataclass(frozen=True, slots=True)
class Heard(Generic[T]):
    """A report and how many seconds ago it was made."""

    report: T
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sightings:
    """Replicas and gateways by id; ``places`` only of replicas where they changed.

    ``gateways`` is None where a look can't tell.
    """

    replicas: Mapping[str, Heard[ReplicaReport]] = field(default_factory=dict)
    gateways: Mapping[str, Heard[GatewayReport]] | None = None
    places: Mapping[str, AdapterPlaces] = field(default_factory=dict)


def stale_places(
    replicas: Mapping[str, Heard[ReplicaReport]], known: Mapping[str, PlacesVersion]
) -> list[str]:
    """Replicas whose places are not what was last read."""
    return [
        replica_id
        for replica_id, heard in replicas.items()
        if known.get(replica_id) != (heard.report.epoch, heard.report.adapters_version)
    ]
