"""Two replicas under one name: gateways would take them for one that restarts all the time."""

from __future__ import annotations

import logging

import msgspec

NUM_SEEN = 4
"""Reports of another life, after our own first one, until it is no predecessor that just died."""

logger = logging.getLogger(__name__)


class _Life(msgspec.Struct):
    epoch: str
    url: str


class Namesakes:
    """Says once that ``replica_id`` is taken."""

    def __init__(self, replica_id: str) -> None:
        self._replica_id = replica_id
        self._num_seen = 0
        self._has_beaten = False

    @property
    def are_there(self) -> bool:
        """Whether another replica beats under this name."""
        return self._num_seen >= NUM_SEEN

    def note(self, last_report: bytes, epoch: str) -> None:
        """What was there before a beat of ours; empty for nothing."""
        if self._has_beaten and last_report:
            life = msgspec.json.decode(last_report, type=_Life)
            if life.epoch != epoch:
                self._num_seen += 1
                if self._num_seen == NUM_SEEN:
                    logger.error(
                        "another replica of this fleet, at %s, has the same --replica-id %r: "
                        "gateways take the two for one that restarts all the time",
                        life.url,
                        self._replica_id,
                    )
        self._has_beaten = True
