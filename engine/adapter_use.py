"""Who uses which adapter, and whose way to the device nobody has paid for yet."""

from __future__ import annotations

from collections.abc import Mapping

from .tally import Tally


class AdapterUse:
    """Live requests by adapter; None, the base model, is not counted."""

    def __init__(self) -> None:
        self.num_parked = Tally()
        self._live = Tally()
        self._unpaid: set[str] = set()

    def came(self, adapter: str | None) -> None:
        """A request is live."""
        if adapter is not None:
            self._live.add(adapter)

    def ended(self, adapter: str | None) -> None:
        """A request has ended."""
        if adapter is not None:
            self._live.add(adapter, -1)

    def parked(self, adapter: str | None) -> None:
        """A live request neither runs nor waits: it is held."""
        if adapter is not None:
            self.num_parked.add(adapter)

    def went_on(self, adapter: str | None) -> None:
        """A request is not held any more, or is about to end."""
        if adapter is not None:
            self.num_parked.add(adapter, -1)

    def num_requests(self, adapter: str) -> int:
        """Live requests: running, waiting and held."""
        return self._live[adapter]

    def waiting(self, num_running: Mapping[str, int]) -> dict[str, int]:
        """Requests that wait, by adapter, when so many run."""
        parked = self.num_parked
        waiting = {a: n - num_running.get(a, 0) - parked[a] for a, n in self._live.items()}
        return {adapter: number for adapter, number in waiting.items() if number > 0}

    def brought(self, adapter: str) -> None:
        """An adapter has come to the device; who uses it first pays for that."""
        self._unpaid.add(adapter)

    def take_debt(self, adapter: str) -> bool:
        """Whether a request that starts now has its adapter's way to pay for; it then has."""
        if adapter not in self._unpaid:
            return False
        self._unpaid.remove(adapter)
        return True

    def forget(self, adapter: str) -> None:
        """An adapter is gone."""
        self._unpaid.discard(adapter)
