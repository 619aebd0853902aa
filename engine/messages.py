"""The wire between the server process and the engine process: msgpack over one ZeroMQ pair."""

from __future__ import annotations

import msgspec

from .config import EngineConfig
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


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Leave, now."""


class Progress(msgspec.Struct, tag=True, frozen=True):
    """What the engine is doing while it starts; one line for a person."""

    text: str


class Started(msgspec.Struct, tag=True, frozen=True):
    """The engine is up."""

    info: EngineInfo
    stats: EngineStats


class StartFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine can't come up, and why in one line."""

    error: str


class StepDone(msgspec.Struct, tag=True, frozen=True):
    """What a step gave, and how the engine stands after it."""

    outputs: list[TokenOutput]
    stats: EngineStats


ToEngine = Start | Generate | Abort | Stop
FromEngine = Progress | Started | StartFailed | StepDone
