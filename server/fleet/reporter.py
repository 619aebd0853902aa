"""This replica's report of itself, made anew whenever it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ... import __version__
from ...engine.config import EngineConfig
from ...gateway.fleet.records import ReplicaReport, ReplicaState
from ..catalog import Catalog
from ..gate import Gate
from ..supervisor import EngineSupervisor
from .load_times import LoadTimes
from .options import ReplicaIdentity
from .place_book import PlaceBook


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSources:
    """What a report is made of; ``epoch`` is drawn at each start."""

    identity: ReplicaIdentity
    epoch: str
    fingerprint: str
    engine: EngineConfig
    catalog: Catalog
    supervisor: EngineSupervisor
    gate: Gate
    places: PlaceBook
    load_times: LoadTimes


class Reporter:
    """Counts the reports it makes; ``is_listening`` and ``is_draining`` are set from outside."""

    def __init__(self, sources: ReportSources) -> None:
        self.is_listening = False
        self.is_draining = False
        self._sources = sources
        self._beat = 0
        self._progress = 0
        self._progress_before = 0

    @property
    def state(self) -> ReplicaState:
        """Whether requests sent here now get an answer."""
        if self.is_draining or self._sources.gate.closed:
            return "draining"
        is_up = self.is_listening and self._sources.supervisor.alive
        return "ready" if is_up else "starting"

    def report(self, key_sequence: int = 0) -> ReplicaReport:
        """How the replica stands now."""
        sources = self._sources
        info, stats = sources.supervisor.info, sources.supervisor.stats
        self._beat += 1
        return ReplicaReport(
            replica_id=sources.identity.replica_id,
            url=sources.identity.url,
            epoch=sources.epoch,
            beat=self._beat,
            state=self.state,
            fingerprint=sources.fingerprint,
            models=list(sources.catalog.base_names),
            max_model_len=info.max_model_len,
            progress=self._count_progress(stats.num_steps - stats.num_failed_steps),
            p99_step_seconds=stats.p99_step_seconds,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            max_num_seqs=info.max_num_seqs,
            max_queued_requests=sources.engine.max_queued_requests,
            num_queued_prefill_tokens=stats.num_queued_prompt_tokens,
            prefill_tokens_per_second=stats.prompt_tokens_per_second,
            num_free_blocks=stats.num_free_blocks,
            num_blocks=stats.num_blocks,
            block_size=info.block_size,
            adapters_version=sources.places.current.version,
            adapter_host_seconds=sources.load_times.host_seconds,
            adapter_cold_seconds=sources.load_times.cold_seconds,
            key_sequence=key_sequence,
            version=__version__,
        )

    def _count_progress(self, num_steps: int) -> int:
        """Steps over all engines of this epoch: one that was restarted counts from 0 again."""
        if num_steps < self._progress:
            self._progress_before += self._progress
        self._progress = num_steps
        return self._progress_before + num_steps
