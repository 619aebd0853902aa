"""Requests whose readers are behind: not computed until somebody reads on.

A held request has no seat, no slot and no blocks of its own. It has left the queue, so that nobody
waits behind it and nothing counts as overtaking it; when it goes on it enters as a preempted one
does, by the age and with the claims that it had. Its committed blocks stay in the prefix cache for
as long as nobody needs the room.
"""

from __future__ import annotations

from collections import Counter

from .adapter_use import AdapterUse
from .admission import Admission
from .fair_queue import FairQueue
from .request import Request, RequestStatus
from .seats import Seats


class HeldRequests:
    """Those that are parked, and those that will be when the last step that reads them is through.

    Such a step's token is taken in like any other, so nothing is computed in vain.
    """

    def __init__(
        self, queue: FairQueue, seats: Seats, admission: Admission, adapter_use: AdapterUse
    ) -> None:
        self.num_holds = 0
        self._queue = queue
        self._seats = seats
        self._admission = admission
        self._adapter_use = adapter_use
        self._leaving: set[Request] = set()
        self._parked: set[Request] = set()

    @property
    def num_parked(self) -> int:
        """Requests that are neither running nor waiting."""
        return len(self._parked)

    def hold(self, request: Request) -> None:
        """Plan nothing more for a live request; no error if it is held already."""
        if request.is_held:
            return
        request.is_held = True
        self.num_holds += 1
        self._leaving.add(request)
        self.settle()

    def settle(self) -> None:
        """After a step: park those that it was the last one for."""
        if self._leaving:
            fence = self._seats.fence
            for request in [r for r in self._leaving if fence.is_through(r.last_step)]:
                self._leaving.remove(request)
                self._park(request)

    def _park(self, request: Request) -> None:
        assert not request.num_pending_tokens, f"{request.request_id} has a token on its way"
        if request in self._queue:
            self._queue.remove(request)
        if request.status is RequestStatus.RUNNING:
            self._seats.leave(request)
        else:
            self._admission.ended(request)
        request.status = RequestStatus.HELD
        request.num_computed_tokens = 0
        request.key.extend_to(request.token_ids)
        self._parked.add(request)
        self._adapter_use.parked(request.adapter)

    def go_on(self, request: Request) -> None:
        """Undo ``hold``; no error for a request that is not held."""
        request.is_held = False
        self._leaving.discard(request)
        if request in self._parked:
            self._unpark(request)
            request.status = RequestStatus.WAITING
            self._queue.push(request)

    def ended(self, request: Request) -> None:
        """A request is over, held or not."""
        self._leaving.discard(request)
        if request in self._parked:
            self._unpark(request)

    def _unpark(self, request: Request) -> None:
        self._parked.remove(request)
        self._adapter_use.went_on(request.adapter)

    def check(self) -> None:
        """Whoever is parked holds nothing, and who is not yet has a step under way."""
        fence = self._seats.fence
        for request in self._leaving:
            assert request.is_held
            assert request.status is RequestStatus.RUNNING
            assert not fence.is_through(request.last_step)
        by_adapter = Counter(r.adapter for r in self._parked if r.adapter is not None)
        assert by_adapter == self._adapter_use.num_parked
        for request in self._parked:
            assert request.is_held
            assert request.status is RequestStatus.HELD
            assert request not in self._queue
            assert request not in self._seats.running
            assert request.slot is None
            assert not request.blocks.block_ids
            assert not request.num_computed_tokens
