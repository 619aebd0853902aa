"""What replicas and gateways tell each other, as JSON; all times are seconds."""

from __future__ import annotations

from typing import Literal

import msgspec

ReplicaState = Literal["starting", "ready", "draining"]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Read leniently: a newer side may send fields that this one does not know."""


class ReplicaReport(Record, frozen=True):
    """How a replica stands; made anew for every heartbeat.

    ``epoch`` is drawn at each start, ``beat`` counts heartbeats in it. ``fingerprint`` is of all
    that decides what tokens come out for base requests: weights, dtypes, quantization, tokenizer
    and template. ``progress`` counts engine steps that succeeded. ``num_queued_prefill_tokens``
    are uncached prompt tokens not computed yet, of waiting and running requests, and
    ``prefill_tokens_per_second`` is measured (0 while unknown). ``adapters_version`` grows with
    every change of what ``AdapterPlaces`` lists.
    """

    replica_id: str
    url: str
    epoch: str
    beat: int
    state: ReplicaState
    fingerprint: str
    models: list[str]
    max_model_len: int
    progress: int = 0
    p99_step_seconds: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    max_num_seqs: int = 0
    max_queued_requests: int | None = None
    num_queued_prefill_tokens: int = 0
    prefill_tokens_per_second: float = 0.0
    num_free_blocks: int = 0
    num_blocks: int = 0
    block_size: int = 0
    adapters_version: int = 0
    adapter_host_seconds: float = 0.0
    adapter_cold_seconds: float = 0.0
    key_sequence: int = 0
    version: str = ""


class AdapterPlace(Record, frozen=True):
    """One name of a replica's catalog that is not a base name.

    ``digest`` is of the version that the name gives now, ``tier`` where its nearest copy lies.
    ``uses_base_prefix``: an activated LoRA, whose prompts begin in the base's KV. ``error`` says
    why it can't be served.
    """

    name: str
    digest: str
    tier: Literal["device", "host", "disk"] | None = None
    is_loading: bool = False
    uses_base_prefix: bool = False
    error: str | None = None


class AdapterPlaces(Record, frozen=True):
    """Everything a replica serves beside its base, as of ``version`` in ``epoch``."""

    epoch: str
    version: int
    places: list[AdapterPlace] = []


class KeyEvents(Record, frozen=True):
    """Prefix keys that came and went at a replica, in this order: ``cleared``, removed, stored.

    ``sequence`` counts such batches within an epoch, from 1. A reader that misses one starts over
    from ``KeySnapshot``. Keys are ``prefix_keys.KEY_BYTES`` bytes each, one behind the other.
    """

    epoch: str
    sequence: int
    cleared: bool = False
    removed: bytes = b""
    stored: bytes = b""


class KeySnapshot(Record, frozen=True):
    """All prefix keys a replica holds after the batch ``sequence``."""

    epoch: str
    sequence: int
    keys: bytes = b""


class ReplicaLoad(Record, frozen=True):
    """What one gateway has on its way to one replica that the replica may not report yet."""

    num_requests: int = 0
    num_prefill_tokens: int = 0


class GatewayReport(Record, frozen=True):
    """How a gateway stands; ``loads`` is by replica id.

    ``adapter_demand`` is what it sees asked of adapter versions, in tokens a second.
    """

    gateway_id: str
    url: str
    beat: int
    loads: dict[str, ReplicaLoad] = {}
    adapter_demand: dict[str, float] = {}
