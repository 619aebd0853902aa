"""Redis addresses: one server, a socket, Sentinels or a Cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Kind = Literal["single", "unix", "sentinel", "cluster"]

_KINDS: Mapping[str, Kind] = {
    "redis": "single",
    "rediss": "single",
    "unix": "unix",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_PORTS: Mapping[Kind, int] = {"single": 6379, "unix": 0, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    """A parsed address; ``str`` of it shows no password.

    ``hosts`` are of the server, the Sentinels or some nodes of the Cluster. ``service`` is what
    the Sentinels call the server. ``options`` are from the query: files and rules for TLS, and the
    Sentinels' own user and password.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    is_tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        places = ",".join(f"{host}:{port}" for host, port in self.hosts) or self.path
        return f"{self.kind} {places}{f' ({self.service})' if self.service else ''}"


def parse_redis_url(url: str) -> RedisUrl:
    """Take an address apart; ValueError says what is wrong and never shows a password.

    ```
    redis://[[user]:password@]host[:6379][/db]             rediss:// for TLS
    unix://[[user]:password@]/path/of/socket[?db=0]
    redis+sentinel://[…@]host[:26379],host/service[/db]    also rediss+sentinel
    redis+cluster://[…@]host[:6379],host                   also rediss+cluster
    ```
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("it is not an address (percent-encode special characters)") from None
    kind = _KINDS.get(parts.scheme)
    if kind is None:
        raise ValueError(f"it must begin with one of {', '.join(f'{name}://' for name in _KINDS)}")
    is_tls = parts.scheme.startswith("rediss")
    user, _, places = parts.netloc.rpartition("@")
    username, _, password = user.partition(":")
    options = _options(parts, kind, is_tls)
    service, db = _path(parts, kind, options.pop("db", None))
    return RedisUrl(
        kind=kind,
        hosts=() if kind == "unix" else _hosts(places, _PORTS[kind]),
        path=unquote(parts.path) if kind == "unix" else "",
        service=service,
        db=db,
        is_tls=is_tls,
        username=unquote(username) or None,
        password=unquote(password) or None,
        options=options,
    )


def _hosts(places: str, port: int) -> tuple[tuple[str, int], ...]:
    """Hosts with their ports. What stands there isn't shown: it may be a piece of a password."""
    return tuple(_host(place, port) for place in places.split(","))


def _host(place: str, port: int) -> tuple[str, int]:
    problem = "each host is a name or name:port (percent-encode special characters of passwords)"
    try:
        parts = urlsplit(f"//{place}")
        host, given_port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(problem) from None
    if not host or parts.netloc != place:
        raise ValueError(problem)
    return host, port if given_port is None else given_port


def _options(parts: SplitResult, kind: Kind, is_tls: bool) -> dict[str, str]:
    """The query; each name that isn't known is an error."""
    allowed = {"db"} if kind != "cluster" else set()
    allowed |= _TLS_OPTIONS if is_tls else set()
    allowed |= _SENTINEL_OPTIONS if kind == "sentinel" else set()
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in allowed:
            names = ", ".join(sorted(allowed)) or "none"
            raise ValueError(f"its query has an option that is not one of: {names}")
    if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise ValueError("ssl_cert_reqs must be required, optional or none")
    return options


def _path(parts: SplitResult, kind: Kind, db: str | None) -> tuple[str, int]:
    """The Sentinels' service and the database's number."""
    if kind == "unix":
        if not parts.path.strip("/"):
            raise ValueError("unix:// must name a socket's path: unix:///run/redis.sock")
        return "", _number(db)
    names = [unquote(name) for name in parts.path.split("/") if name]
    service = names.pop(0) if kind == "sentinel" and names else ""
    if kind == "sentinel" and not service:
        raise ValueError("it must name the Sentinels' service: redis+sentinel://host:26379/service")
    if kind == "cluster" and names:
        raise ValueError("a Cluster has one database only: leave the path away")
    if len(names) > 1:
        raise ValueError("its path has too many parts")
    return service, _number(names[0] if names else db)


def _number(db: str | None) -> int:
    if db is None:
        return 0
    if not (db.isascii() and db.isdigit() and len(db) <= 5):
        raise ValueError("the database must be a number from 0")
    return int(db)
