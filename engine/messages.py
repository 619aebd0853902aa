"""The wire between the server process and the engine process: msgpack over one ZeroMQ pair."""

from __future__ import annotations

import msgspec

from .adapter_types import AdapterEvent, AdapterReport, FreedAdapter, PinTier
from .cache_types import BlockChanges, CacheReport, PinReport, PrefixTarget
from .config import EngineConfig
from .progress import Progress
from .types import EngineInfo, EngineStats, GenerationRequest, TokenOutput


class Start(msgspec.Struct, tag=True, frozen=True):
    """First message to the engine: come up with this configuration."""

    config: EngineConfig


class Generate(msgspec.Struct, tag=True, frozen=True):
    """Take in one request."""

    request: GenerationRequest


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End one request and free what it holds, before the next step."""

    request_id: str


class Hold(msgspec.Struct, tag=True, frozen=True):
    """Compute nothing more of one request, and give back what it holds, until ``GoOn``."""

    request_id: str


class GoOn(msgspec.Struct, tag=True, frozen=True):
    """Go on with a request that is held."""

    request_id: str


class ReportCache(msgspec.Struct, tag=True, frozen=True):
    """Answer with a CacheReport of the ``max_prefixes`` biggest prefixes."""

    call_id: str
    max_prefixes: int


class ResetCache(msgspec.Struct, tag=True, frozen=True):
    """Forget every cached prefix; answer with the number of blocks forgotten."""

    call_id: str


class PinPrefix(msgspec.Struct, tag=True, frozen=True):
    """Keep a cached prefix on the device for ``ttl_seconds``; answer with a PinReport."""

    call_id: str
    target: PrefixTarget
    ttl_seconds: float


class RemovePin(msgspec.Struct, tag=True, frozen=True):
    """End a pin; answer with how many there were, 0 or 1."""

    call_id: str
    pin_id: str


class AddAdapter(msgspec.Struct, tag=True, frozen=True):
    """Make an adapter version known by its formatted file; answer with how it stands."""

    call_id: str
    digest: str
    path: str


class RemoveAdapter(msgspec.Struct, tag=True, frozen=True):
    """Forget a version; answer with what was freed, once its last request has ended."""

    call_id: str
    digest: str


class LoadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Bring a version to a tier; answer with how it stands when it is there."""

    call_id: str
    digest: str
    tier: PinTier


class EvictAdapter(msgspec.Struct, tag=True, frozen=True):
    """Take a version off a tier; answer with how it stands."""

    call_id: str
    digest: str
    tier: PinTier


class PinAdapter(msgspec.Struct, tag=True, frozen=True):
    """Keep a version in a tier; answer when it is there. None ends that."""

    call_id: str
    digest: str
    tier: PinTier | None


class ReportAdapters(msgspec.Struct, tag=True, frozen=True):
    """Answer with how these versions stand; None: all."""

    call_id: str
    digests: list[str] | None = None


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Leave, now."""


class Starting(msgspec.Struct, tag=True, frozen=True):
    """How far the engine is with its start."""

    progress: Progress


class Started(msgspec.Struct, tag=True, frozen=True):
    """The engine is up."""

    info: EngineInfo
    stats: EngineStats


class StartFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine can't come up, and why in one line."""

    error: str


class StepDone(msgspec.Struct, tag=True, frozen=True):
    """What a step gave, and how the engine stands after it.

    ``blocks`` comes only where the configuration asks for it.
    """

    outputs: list[TokenOutput]
    stats: EngineStats
    adapter_events: list[AdapterEvent] = []
    blocks: BlockChanges | None = None


class CallDone(msgspec.Struct, tag=True, frozen=True):
    """The answer to the call of that id; ``error_field`` and ``error`` say why there is none.

    ``count`` is the number of blocks forgotten, or of pins removed. ``adapters`` are the one that
    was asked of, or all.
    """

    call_id: str
    report: CacheReport | None = None
    pin: PinReport | None = None
    count: int = 0
    adapters: list[AdapterReport] = []
    freed: FreedAdapter | None = None
    error_field: str | None = None
    error: str | None = None


CacheCall = ReportCache | ResetCache | PinPrefix | RemovePin
AdapterCall = AddAdapter | RemoveAdapter | LoadAdapter | EvictAdapter | PinAdapter | ReportAdapters
ToEngine = Start | Generate | Abort | Hold | GoOn | Stop | CacheCall | AdapterCall
FromEngine = Starting | Started | StartFailed | StepDone | CallDone
