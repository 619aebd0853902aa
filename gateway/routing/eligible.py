"""Which replicas may take a request at all."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import FleetSnapshot, ReplicaView, RouteRequest


def eligible(request: RouteRequest, snapshot: FleetSnapshot) -> Sequence[ReplicaView]:
    """Replicas that are up, were not tried yet and can serve the target.

    A registry adapter may go anywhere, any other only where it lies. A replica that reports an
    error for the adapter comes into question only if all do: then it is the one to say why.
    """
    excluded = request.excluded
    views = [
        view
        for view in snapshot.replicas
        if view.out_reason is None and view.report.replica_id not in excluded
    ]
    target = request.target
    if target.digest is None:
        return [view for view in views if target.wire_name in view.report.models]
    name = target.wire_name
    if not target.in_registry:
        views = [view for view in views if name in view.places]
    sound = [view for view in views if name not in view.places or not view.places[name].error]
    return sound or views
