"""The running batch: who has a seat in it, and giving back what a seat holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..lora.traits import AdapterTraits
from .fair_queue import FairQueue
from .fence import StepFence
from .prefix_cache import BlockLease, PrefixCache
from .request import Request, RequestStatus
from .shared_prefill import SharedPrefill
from .tally import Tally


class Seats:
    """Requests in the order in which they got their seats; at most ``max_running``.

    ``max_step_rank`` bounds the ranks of the distinct adapters in the batch, summed: that is what
    adapters cost a step. One adapter by itself is always admitted.
    """

    def __init__(
        self,
        cache: PrefixCache,
        queue: FairQueue,
        adapters: Mapping[str, AdapterTraits],
        max_running: int,
        max_step_rank: int | None,
    ) -> None:
        self.running: list[Request] = []
        self.fence = StepFence()
        self.prefills = SharedPrefill(cache.enabled)
        self._cache = cache
        self._queue = queue
        self._adapters = adapters
        self._max_running = max_running
        self._max_step_rank = max_step_rank
        self.num_by_adapter = Tally()
        self._sum_of_ranks = 0

    @property
    def num_free(self) -> int:
        """Requests that could sit down at once."""
        return self._max_running - len(self.running)

    def admits_rank(self, adapter: str) -> bool:
        """Whether a step may hold this adapter beside those of the batch."""
        if self._max_step_rank is None or not self.num_by_adapter or self.num_by_adapter[adapter]:
            return True
        return self._sum_of_ranks + self._adapters[adapter].rank <= self._max_step_rank

    def take(self, request: Request) -> None:
        """Seat a request that holds its blocks and its slot."""
        request.status = RequestStatus.RUNNING
        self.running.append(request)
        self._queue.activate(request)
        self.prefills.moved(request)
        if request.adapter is not None:
            self.num_by_adapter.add(request.adapter)
            if self.num_by_adapter[request.adapter] == 1:
                self._sum_of_ranks += self._adapters[request.adapter].rank

    def leave(self, request: Request) -> None:
        """Unseat a request; what it holds is free once no launched step reads it."""
        self.running.remove(request)
        self._queue.deactivate(request)
        self.prefills.ended(request)
        self.fence.release(request.blocks, request.last_step)
        request.blocks = BlockLease(self._cache, request.tenant)
        if request.slot is not None:
            self.fence.release(request.slot, request.last_step)
            request.slot = None
        if request.adapter is not None:
            self.num_by_adapter.add(request.adapter, -1)
            if not self.num_by_adapter[request.adapter]:
                self._sum_of_ranks -= self._adapters[request.adapter].rank

    def check(self) -> None:
        """Seats, ranks and prefills agree."""
        held = Counter(request.adapter for request in self.running if request.adapter is not None)
        assert held == self.num_by_adapter
        assert self._sum_of_ranks == sum(self._adapters[adapter].rank for adapter in held)
        assert all(request.status is RequestStatus.RUNNING for request in self.running)
        assert len(self.running) <= self._max_running
        self.prefills.check(self.running)
