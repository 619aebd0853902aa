"""What this replica serves beside its base, as gateways are told it."""

from __future__ import annotations

from ...gateway.fleet.records import AdapterPlace
from ..adapters.manager import AdapterManager, AdapterState
from ..catalog import Catalog


async def adapter_places(manager: AdapterManager, catalog: Catalog) -> list[AdapterPlace]:
    """One place for each adapter and alias; a split alias is shown as its leading target."""
    states = {state.name: state for state in await manager.list()}
    places = {name: _place(name, name, state, catalog) for name, state in states.items()}
    for alias in manager.list_aliases():
        leading = max(alias.targets, key=lambda target: target.percent).adapter
        if leading in states:
            places[alias.name] = _place(alias.name, leading, states[leading], catalog)
    return list(places.values())


def _place(name: str, adapter: str, state: AdapterState, catalog: Catalog) -> AdapterPlace:
    is_served = adapter in catalog.adapter_names and catalog.can_serve(adapter)
    report = state.report
    return AdapterPlace(
        name=name,
        digest=state.version.digest,
        tier=report.tier if report else None,
        is_loading=report is not None and report.is_loading,
        uses_base_prefix=state.version.facts.uses_base_prefix,
        error=None if is_served else state.error or "it can't be served",
    )
