"""Answers of the adapter API as plain text for a terminal, at most 100 columns wide."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...gateway.fleet.plain_table import cut, moment, table

Fields = Mapping[str, Any]

_MAX_NAME = 26
_UNITS = ("B", "KB", "MB", "GB", "TB")


def adapter_table(adapters: Iterable[Fields], now: float | None = None) -> str:
    """One line an adapter; ``!`` behind a name says that it has an error."""
    now = time.time() if now is None else now
    rows = [
        (
            cut(entry["name"], _MAX_NAME) + (" !" if entry["error"] else ""),
            entry["version"],
            entry["digest"][:8],
            entry["rank"],
            number_of_bytes(entry["bytes"]["device"]),
            f"{entry['tier'] or '-'}{'…' if entry['is_loading'] else ''}",
            entry["pin"] or "-",
            entry["leases"],
            entry["loads"],
            _idle(entry["last_used"], now),
        )
        for entry in adapters
    ]
    heads = ("NAME", "VER", "DIGEST", "RANK", "SIZE", "TIER", "PIN", "LEASES", "LOADS", "IDLE")
    return table(heads, rows)


def adapter_details(entry: Fields) -> str:
    """Everything known of one adapter, a field a line."""
    size = entry["bytes"]
    lines = {
        "name": entry["name"],
        "version": f"{entry['version']} (kept: {', '.join(map(str, entry['versions']))})",
        "digest": entry["digest"],
        "source": _source(entry["source"]),
        "created": moment(entry["created"]),
        "rank": entry["rank"],
        "modules": " ".join(entry["modules"]),
        "bytes": ", ".join(f"{number_of_bytes(size[tier])} on {tier}" for tier in size),
        "tier": f"{entry['tier'] or 'none'}{' (loading)' if entry['is_loading'] else ''}",
        "pin": entry["pin"] or "none",
        "leases": entry["leases"],
        "last used": moment(entry["last_used"]),
        "loads": f"{entry['loads']}, evictions {entry['evictions']}",
        "aliases": " ".join(entry["aliases"]) or "none",
        "error": entry["error"] or "none",
    }
    return "\n".join(f"{name + ':':<11}{value}" for name, value in lines.items())


def version_table(versions: Iterable[Fields]) -> str:
    """One line a version; ``*`` marks the one that answers."""
    rows = [
        (
            f"{entry['version']}{' *' if entry['is_current'] else ''}",
            entry["digest"][:8],
            entry["rank"],
            moment(entry["created"]),
            cut(_source(entry["source"]), 50),
        )
        for entry in versions
    ]
    return table(("VERSION", "DIGEST", "RANK", "CREATED", "SOURCE"), rows)


def alias_table(aliases: Iterable[Fields]) -> str:
    """One line an alias."""
    rows = [(cut(entry["alias"], _MAX_NAME), _split(entry["split"])) for entry in aliases]
    return table(("ALIAS", "POINTS AT"), rows)


def _split(shares: Sequence[Fields]) -> str:
    """As ``alias set`` takes it: ``legal,3``, or ``legal,3=90 legal=10``."""
    return " ".join(
        share["adapter"]
        + (f",{share['version']}" if share["version"] is not None else "")
        + (f"={share['percent']:g}" if len(shares) > 1 else "")
        for share in shares
    )


def number_of_bytes(count: int) -> str:
    """``12 B``, ``3.4 MB``: powers of 1,000."""
    size, unit = float(count), 0
    while size >= 999.5 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return (
        f"{size:.0f} {_UNITS[unit]}" if size >= 99.5 or unit == 0 else f"{size:.1f} {_UNITS[unit]}"
    )


def _source(source: Fields) -> str:
    kind, location = source["kind"], source["location"]
    return kind if location == kind else f"{kind} {location}"


def _idle(seconds: float | None, now: float) -> str:
    if seconds is None:
        return "-"
    age = max(0.0, now - seconds)
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if age < limit:
            return f"{age // size:.0f} {unit}"
    return f"{age // 86400:.0f} d"
