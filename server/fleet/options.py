"""How a server belongs to a fleet, as it is told on the command line."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ...gateway.fleet.redis_url import parse_redis_url

FLEET_OPTIONS = ("fleet", "fleet_name", "replica_id", "advertise_url")

_FLEET_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REPLICA_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_ALL_ADDRESSES = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """``redis_url`` None: gateways know this server by its address, and poll it.

    ``replica_id`` and ``advertise_url`` None follow from what the server listens on. ``secret``
    is the one that peers are called with too; without it there is no fleet.
    """

    redis_url: str | None = field(default=None, repr=False)
    name: str = "default"
    replica_id: str | None = None
    advertise_url: str | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Who a replica is, and where the fleet reaches it."""

    replica_id: str
    url: str


def parse_fleet_options(options: Mapping[str, Any], secret: str | None) -> FleetOptions:
    """The options of ``FLEET_OPTIONS``; raises ValueError that names the flag, without secrets."""
    url, name = options["fleet"], options["fleet_name"]
    if url is not None:
        if secret is None:
            raise ValueError("--fleet: needs --fleet-secret, which gateways show this server")
        try:
            parse_redis_url(url)
        except ValueError as error:
            raise ValueError(f"--fleet: {error}") from None
    if not _FLEET_NAME.fullmatch(name):
        raise ValueError("--fleet-name: must be 1 to 64 letters, digits, '.', '_' and '-'")
    replica_id = options["replica_id"]
    if replica_id is not None and not _REPLICA_ID.fullmatch(replica_id):
        raise ValueError("--replica-id: must be 1 to 64 letters, digits, '.', '_', ':' and '-'")
    return FleetOptions(
        redis_url=url,
        name=name,
        replica_id=replica_id,
        advertise_url=_checked_url(options["advertise_url"]),
        secret=secret,
    )


def identify(options: FleetOptions, listener: socket.socket) -> ReplicaIdentity:
    """Who the server behind this listener is.

    One that listens on all addresses gives this machine's host name as its own: where others
    can't resolve that, ``--advertise-url`` says what they can.
    """
    host, port = listener.getsockname()[:2]
    if host in _ALL_ADDRESSES:
        host = socket.gethostname()
    url = options.advertise_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    place = re.sub(r"[^A-Za-z0-9._:-]", "", urlsplit(url).netloc)
    return ReplicaIdentity(options.replica_id or place[-64:], url)


def _checked_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError("--advertise-url: must be http://HOST:PORT or https://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"
