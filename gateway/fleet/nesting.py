"""How much there is in a body, found without reading it as JSON."""

from __future__ import annotations

MAX_NESTED = 1 << 17
MAX_FIELDS = 1 << 18
"""Each takes far more time and room than its bytes; chats and schemas have far fewer."""

_MARKS = b'"{[:'
_OTHERS = bytes(byte for byte in range(256) if byte not in _MARKS)


def too_many(body: bytes) -> str | None:
    """What a body of JSON holds too much of, in words; what is in its strings doesn't count."""
    if _most(body) is None:
        return None
    # Without escapes a mark is in a string if the quotes before it are odd in number; two in
    # a row change nothing. All of it as whole passes: a body may be many megabytes of code.
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
    return _most(b"".join(bare.replace(b'""', b"").split(b'"')[::2]))


def _most(body: bytes) -> str | None:
    if body.count(b"{") + body.count(b"[") > MAX_NESTED:
        return f"more than {MAX_NESTED} objects and lists"
    return f"more than {MAX_FIELDS} fields" if body.count(b":") > MAX_FIELDS else None
