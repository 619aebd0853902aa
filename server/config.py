"""What ``branchline serve`` is told, parsed once into frozen values."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..engine.config import EngineConfig

GenerationDefaults = Literal["auto", "none"]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """``--lora NAME=PATH``: the model name clients use, and where the adapter lies."""

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> AdapterSpec:
        """Parse ``NAME=PATH``; raises ValueError that says what is wrong."""
        name, equals, path = text.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise ValueError(f"{text!r} is not NAME=PATH")
        return cls(name.strip(), path.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one request may ask for; beyond is a 400 that names the field."""

    max_body_bytes: int = 16 << 20
    max_choices: int = 128
    max_prompts: int = 256
    max_sequences: int = 512
    max_logprobs: int = 20
    max_stop: int = 16
    max_stop_characters: int = 1024
    max_stop_token_ids: int = 256
    max_logit_bias: int = 1024
    max_messages: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Everything ``branchline serve`` needs. Times are seconds.

    ``engine.model`` is the operator's MODEL, a directory or a hub id, and ``engine.adapters``
    is still empty: ``serve`` finds the directories and reads ``adapters``.
    ``api_key_digests`` are sha256 of the accepted keys; none means that no key is asked
    for. ``served_model_names`` are the base model's names, the first one leading.
    ``ready_timeout`` is the N of ``/ready``.
    """

    engine: EngineConfig
    adapters: tuple[AdapterSpec, ...] = ()
    served_model_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_digests: tuple[bytes, ...] = ()
    chat_template: str | None = None
    generation_config: GenerationDefaults = "auto"
    shutdown_timeout: float = 30.0
    ready_timeout: float = 10.0
    restart_engine: bool = False
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)


def digest_key(key: str) -> bytes:
    """An API key as it is kept: sha256, 32 bytes."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def parse_serve_options(options: Mapping[str, Any]) -> ServeConfig:
    """The command line's options as a config; raises ValueError that names the flag.

    Keys of ``BRANCHLINE_API_KEY`` (comma-separated) come beside those of ``--api-key``.
    """
    given = dict(options)
    model = given.pop("model")
    adapters = tuple(_named("--lora", AdapterSpec.parse, text) for text in given.pop("lora"))
    keys = (*given.pop("api_key"), *os.environ.get("BRANCHLINE_API_KEY", "").split(","))
    engine_names = {spec.name for spec in fields(EngineConfig)}
    engine_options = {name: given.pop(name) for name in list(given) if name in engine_names}
    try:
        engine = EngineConfig(model=model, **engine_options)
    except ValueError as error:
        raise ValueError(f"--{str(error).replace('_', '-')}") from error
    return ServeConfig(
        engine=engine,
        adapters=adapters,
        served_model_names=tuple(given.pop("served_model_name")),
        api_key_digests=tuple(digest_key(key.strip()) for key in keys if key.strip()),
        limits=Limits(max_body_bytes=int(given.pop("max_body_mb") * (1 << 20))),
        **given,
    )


def _named(flag: str, parse: Callable[[str], AdapterSpec], text: str) -> AdapterSpec:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
