"""What ``branchline gateway`` is told, parsed once into a frozen value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .fleet.cors import parse_origins
from .fleet.identity import digest_key, is_loopback

_FLEET_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLimits:
    """What one request may take, and how long each step may; times in seconds.

    ``client_timeout`` is how long a client may take nothing of its stream. A replica has
    ``first_byte_timeout`` until it is asked whether it knows the request, ``silence_timeout``
    between two pieces of an answer. A broken stream is resumed within ``resume_timeout``.
    """

    max_body_bytes: int = 16 << 20
    body_timeout: float = 30.0
    max_streams: int = 4096
    client_timeout: float = 60.0
    connect_timeout: float = 1.5
    first_byte_timeout: float = 5.0
    silence_timeout: float = 5.0
    resume_timeout: float = 30.0
    max_tries: int = 4
    max_buffered_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything ``branchline gateway`` needs.

    Exactly one of ``redis`` and ``replicas`` is set. ``fleet_secret`` is the secret itself: it
    goes to replicas. ``admin_keys`` are sha256 digests. ``cors_origins`` are the web pages that may
    call from browsers. ``workers`` are the processes that share the port; ``limits.max_streams`` is
    for all of them together.
    """

    redis: str | None
    replicas: tuple[str, ...]
    fleet_secret: str = field(repr=False)
    fleet_name: str = "default"
    host: str = "127.0.0.1"
    port: int = 8080
    policy: str = "cost"
    admin_keys: tuple[bytes, ...] = field(default=(), repr=False)
    allow_anonymous: bool = False
    tenants_file: Path | None = None
    state_dir: Path | None = None
    limits: ProxyLimits = field(default_factory=ProxyLimits)
    shutdown_timeout: float = 30.0
    log_level: str = "info"
    access_log: bool = True
    otlp_endpoint: str | None = None
    cors_origins: tuple[str, ...] = ()
    workers: int = 1

    @property
    def keyless_admin(self) -> bool:
        """Whether this machine's own users are admins without a key."""
        return self.allow_anonymous and not self.admin_keys and is_loopback(self.host)

    def of_worker(self, number: int, port: int) -> GatewayConfig:
        """What worker ``number`` (from 0) is told, at the port that all of them share.

        Worker 0 keeps its state where a gateway alone does, each other in a folder below.
        """
        state_dir = self.state_dir
        if state_dir is not None and number:
            state_dir = state_dir / f"worker-{number}"
        limits = replace(self.limits, max_streams=-(-self.limits.max_streams // self.workers))
        return replace(self, port=port, state_dir=state_dir, limits=limits)


def parse_gateway_options(options: Mapping[str, Any]) -> GatewayConfig:
    """The command line's options as a config; raises ValueError that names the flag.

    ``BRANCHLINE_FLEET_SECRET`` stands in for its flag, ``BRANCHLINE_ADMIN_KEY``
    (comma-separated) comes beside its flag. No message shows a secret.
    """
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')}: must be a finite number")
    replicas = tuple(dict.fromkeys(_replica_url(text) for text in options["replica"]))
    if bool(options["redis"]) == bool(replicas):
        raise ValueError("--redis: give either --redis URL or --replica URL (repeatable)")
    if options["workers"] > 1 and not options["redis"]:
        raise ValueError("--workers: more than 1 need --redis, through which they share all limits")
    if not _FLEET_NAME.fullmatch(options["fleet_name"]):
        raise ValueError("--fleet-name: must be 1 to 64 of letters, digits, '.', '_' and '-'")
    secret = _fleet_secret(options["fleet_secret"])
    admin_keys = tuple(map(digest_key, _admin_keys(options["admin_key"])))
    if digest_key(secret) in admin_keys:
        raise ValueError("--admin-key: the same secret is given as --fleet-secret")
    return GatewayConfig(
        redis=options["redis"] or None,
        replicas=replicas,
        fleet_secret=secret,
        fleet_name=options["fleet_name"],
        host=options["host"],
        port=options["port"],
        policy=options["policy"],
        admin_keys=admin_keys,
        allow_anonymous=options["allow_anonymous"],
        tenants_file=_path(options["tenants"]),
        state_dir=_path(options["state_dir"]),
        limits=_limits(options),
        shutdown_timeout=options["shutdown_timeout"],
        log_level=options["log_level"],
        access_log=options["access_log"],
        otlp_endpoint=options["otlp_endpoint"],
        cors_origins=parse_origins(options["cors_origin"], options["allowed_origins"]),
        workers=options["workers"],
    )


def _limits(options: Mapping[str, Any]) -> ProxyLimits:
    return ProxyLimits(
        max_body_bytes=int(options["max_body_mb"] * (1 << 20)),
        body_timeout=options["body_timeout"],
        max_streams=options["max_streams"],
        client_timeout=options["client_timeout"],
        connect_timeout=options["connect_timeout"],
        first_byte_timeout=options["first_byte_timeout"],
        silence_timeout=options["silence_timeout"],
        resume_timeout=options["resume_timeout"],
        max_tries=options["max_tries"],
    )


def _replica_url(text: str) -> str:
    """``http://host[:port]`` without a path; what is wrong is said without a password in it."""
    try:
        parts = urlsplit(text.strip())
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        named = False
    if not named or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError("--replica: must be http://HOST:PORT, without user, path or query")
    return f"{parts.scheme}://{parts.netloc}"


def _fleet_secret(given: str | None) -> str:
    if given is not None and not given.strip():
        raise ValueError("--fleet-secret: must not be empty")
    secret = (given or os.environ.get("BRANCHLINE_FLEET_SECRET", "")).strip()
    if not secret:
        raise ValueError("--fleet-secret: is needed, or BRANCHLINE_FLEET_SECRET: replicas ask it")
    if not secret.isascii() or not secret.isprintable():
        raise ValueError("--fleet-secret: must be printable ASCII, it travels in a header")
    return secret


def _admin_keys(given: Iterable[str]) -> list[str]:
    stripped = [key.strip() for key in given]
    if not all(stripped):
        raise ValueError("--admin-key: must not be empty")
    others = [part.strip() for part in os.environ.get("BRANCHLINE_ADMIN_KEY", "").split(",")]
    return list(dict.fromkeys([*stripped, *filter(None, others)]))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser().absolute()
