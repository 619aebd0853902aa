"""Which headers pass, both ways: few by name; everything else stays at this door.

A client's fleet headers, hop-by-hop headers and cookies never reach a replica, a replica's own
never a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..fleet import headers as fleet

RawHeaders = Sequence[tuple[bytes, bytes]]

_FROM_CLIENT = ("content-type", "accept", "user-agent", fleet.TRACE_PARENT, "tracestate")
_FROM_REPLICA = ("content-type", "content-encoding", "retry-after")
_SINGLE = frozenset({b"authorization", b"content-length", b"content-type", b"host"})


def read_headers(raw: RawHeaders) -> dict[str, str] | None:
    """Lower-case names to values, of equal names the first; None: one is twice that may not be."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key = name.decode("latin-1")
        if key not in headers:
            headers[key] = value.decode("latin-1")
        elif name in _SINGLE:
            return None
    return headers


def to_replica(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a client's headers goes on to a replica."""
    passed = {}
    for name in _FROM_CLIENT:
        value = headers.get(name)
        if value is not None and _is_plain(value):
            passed[name] = value
    passed.setdefault("content-type", "application/json")
    return passed


def to_client(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """What of a replica's headers goes on to the client; ``headers`` tells no case apart."""
    return [
        (name.encode(), headers[name].encode("latin-1", "replace"))
        for name in _FROM_REPLICA
        if name in headers
    ]


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Our own headers as ASGI takes them."""
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


def _is_plain(value: str) -> bool:
    return len(value) <= 1024 and value.isascii() and value.isprintable()
