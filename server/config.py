"""What ``branchline serve`` is told, parsed once into frozen values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..engine.config import EngineConfig
from ..gateway.fleet.cors import parse_origins
from ..gateway.fleet.kept_limits import KeptLimits
from .access import Access, parse_access, read_fleet_secret
from .adapters.sources import SourcePolicy
from .fleet.options import FLEET_OPTIONS, FleetOptions, parse_fleet_options

GenerationDefaults = Literal["auto", "none"]

MAX_INTEGER = 2**31 - 1

_ACCESS_OPTIONS = ("api_key", "tenant", "tenant_weight", "fleet_secret", "admin_key")


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
    """The most that one request may ask for; beyond is a 400 that names the field.

    A body is also to be here within ``body_timeout`` seconds, else it is a 408; a client that
    takes nothing of its stream for ``client_timeout`` seconds is cut off.
    """

    max_body_bytes: int = 16 << 20
    body_timeout: float = 30.0
    client_timeout: float = 60.0
    max_choices: int = 128
    max_prompts: int = 256
    max_sequences: int = 512
    max_logprobs: int = 20
    max_prompt_logprobs_entries: int = 300_000
    max_stop: int = 16
    max_stop_characters: int = 1024
    max_stop_token_ids: int = 256
    max_logit_bias: int = 1024
    max_allowed_token_ids: int = 4096
    max_bad_words: int = 128
    max_bad_word_characters: int = 256
    max_beam_width: int = 32
    max_embedding_inputs: int = 2048
    max_messages: int = 8192
    max_tools: int = 128
    max_tools_bytes: int = 1 << 20
    max_tool_calls: int = 128
    max_schema_bytes: int = 256 << 10
    max_schema_depth: int = 64
    max_schema_nodes: int = 20_000
    max_regex_characters: int = 8192
    max_grammar_characters: int = 64 << 10
    max_structured_choices: int = 2048
    max_detokenized_tokens: int = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Everything ``branchline serve`` needs. Times are seconds.

    ``engine.model`` is the operator's MODEL, a directory or a hub id, and ``engine.adapters``
    is still empty: ``serve`` finds the directories and reads ``adapters``.
    ``served_model_names`` are the base model's names, the first one leading.
    ``ready_timeout`` is the N of ``/ready``. ``state_dir`` keeps adapters over restarts, None for
    not at all; ``adapter_versions_kept`` older versions of each are kept to roll back to.
    ``cors_origins`` are the web pages that may call from browsers.
    ``tool_call_parser`` and ``reasoning_parser`` name how answers are read (``output.families``).
    ``fleet`` says which fleet this server belongs to, if any. ``responses`` bounds those that are
    kept for ``previous_response_id``.
    """

    engine: EngineConfig
    adapters: tuple[AdapterSpec, ...] = ()
    served_model_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    access: Access = field(default_factory=Access)
    chat_template: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    generation_config: GenerationDefaults = "auto"
    shutdown_timeout: float = 30.0
    ready_timeout: float = 10.0
    restart_engine: bool = False
    log_level: str = "info"
    otlp_endpoint: str | None = None
    limits: Limits = field(default_factory=Limits)
    state_dir: str | None = None
    sources: SourcePolicy = field(default_factory=SourcePolicy)
    adapter_versions_kept: int = 4
    fleet: FleetOptions = field(default_factory=FleetOptions)
    cors_origins: tuple[str, ...] = ()
    responses: KeptLimits = field(default_factory=KeptLimits)


def parse_serve_options(options: Mapping[str, Any]) -> ServeConfig:
    """The command line's options as a config; raises ValueError that names the flag."""
    given = dict(options)
    for name, value in given.items():
        _check_number(f"--{name.replace('_', '-')}", value)
    adapters = tuple(_named("--lora", AdapterSpec.parse, text) for text in given.pop("lora"))
    secret = read_fleet_secret(given["fleet_secret"])
    fleet = parse_fleet_options({name: given.pop(name) for name in FLEET_OPTIONS}, secret)
    access = parse_access({name: given.pop(name) for name in _ACCESS_OPTIONS})
    return ServeConfig(
        engine=replace(_engine_config(given), tell_blocks=access.fleet_secret is not None),
        adapters=adapters,
        access=replace(access, is_closed=fleet.redis_url is not None),
        fleet=fleet,
        served_model_names=tuple(given.pop("served_model_name")),
        limits=Limits(
            max_body_bytes=int(given.pop("max_body_mb") * (1 << 20)),
            body_timeout=given.pop("body_timeout"),
            client_timeout=given.pop("client_timeout"),
        ),
        sources=_source_policy(given),
        cors_origins=parse_origins(given.pop("cors_origin"), given.pop("allowed_origins")),
        responses=KeptLimits(
            ttl=given.pop("response_ttl"),
            max_bytes=int(given.pop("response_store_mb") * (1 << 20)),
        ),
        **given,
    )


def _source_policy(given: dict[str, Any]) -> SourcePolicy:
    """Takes what adapters may be fetched from out of ``given``."""
    roots = [Path(root).expanduser().absolute() for root in given.pop("adapter_root")]
    try:
        return SourcePolicy(
            roots=tuple(map(str, roots)),
            prefixes=tuple(given.pop("adapter_source")),
            max_bytes=int(given.pop("max_adapter_mb") * (1 << 20)),
            timeout=given.pop("adapter_fetch_timeout"),
        )
    except ValueError as error:
        raise ValueError(f"--adapter-source: {error}") from error


def _check_number(flag: str, value: object) -> None:
    """Refuse what no machine has, and the messages to the engine can't hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag} must be a finite number")
    if isinstance(value, int) and value > MAX_INTEGER:
        raise ValueError(f"{flag} must be at most {MAX_INTEGER}")


def _engine_config(given: dict[str, Any]) -> EngineConfig:
    """Takes the engine's options out of ``given``."""
    engine_names = {spec.name for spec in fields(EngineConfig)}
    options = {name: given.pop(name) for name in list(given) if name in engine_names}
    options["isolate_tenants"] = not given.pop("share_prefixes")
    try:
        return EngineConfig(**options)
    except ValueError as error:
        raise ValueError(f"--{str(error).replace('_', '-')}") from error


def _named(flag: str, parse: Callable[[str], AdapterSpec], text: str) -> AdapterSpec:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
