"""Answers of the tenant API as plain text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..fleet.plain_table import cut, moment, table

Fields = Mapping[str, Any]

_MAX_NAME = 30


def tenant_table(tenants: Iterable[Fields]) -> str:
    """One line a tenant."""
    rows = [
        (
            cut(entry["name"], _MAX_NAME) + (" (off)" if entry["disabled"] else ""),
            cut(_models(entry["models"]), 24),
            f"{entry['weight']:g}",
            entry["priority"],
            cut(entry["group"] or "-", 16),
            sum(value is not None for value in entry["limits"].values()) or "-",
            entry["num_keys"],
        )
        for entry in tenants
    ]
    return table(("NAME", "MODELS", "WEIGHT", "PRIORITY", "GROUP", "LIMITS", "KEYS"), rows)


def tenant_details(entry: Fields) -> str:
    """Everything about one tenant, a field a line."""
    models = entry["models"]
    lines = {
        "name": entry["name"],
        "models": _models(models),
        "weight": f"{entry['weight']:g}",
        "priority": entry["priority"],
        "group": entry["group"] or "none",
        **{name.replace("_", " "): _limit(value) for name, value in entry["limits"].items()},
        "disabled": "yes" if entry["disabled"] else "no",
        "created": moment(entry["created"]),
        "keys": entry["num_keys"],
        "revision": entry["revision"],
    }
    width = max(map(len, lines)) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in lines.items())


def key_table(keys: Iterable[Fields]) -> str:
    """One line a key."""
    rows = [
        (
            entry["id"],
            f"…{entry['ending']}" if entry["ending"] else "-",
            moment(entry["created"]),
            moment(entry["expires_at"]) + (" (over)" if entry["is_expired"] else ""),
        )
        for entry in keys
    ]
    return table(("ID", "KEY", "CREATED", "EXPIRES"), rows)


def usage_table(report: Fields) -> str:
    """One line for a tenant's day under one label, and what may be missing."""
    counts = ("num_requests", "num_input_tokens", "num_cached_tokens", "num_output_tokens")
    rows = [
        (
            row["day"],
            cut(row["tenant"], _MAX_NAME),
            cut(row["label"], 24),
            *(row[name] for name in counts),
        )
        for row in report["rows"]
    ]
    heads = ("DAY", "TENANT", "MODEL", "REQUESTS", "INPUT", "CACHED", "OUTPUT")
    notes = [f"complete until {_utc(report['complete_until'])}"]
    if report["scope"] != "fleet":
        notes.append("of this gateway alone: there is no Redis, or it is away")
    for gap in report["gaps"]:
        gone = f"gateway {gap['gateway']} ended without a word"
        notes.append(f"{gone}: what it counted after {_utc(gap['since'])} may be missing")
    return "\n".join([table(heads, rows), *notes])


def _utc(moment: str) -> str:
    """``2026-11-21T17:28:19.959Z`` to the second, as the other tables have it."""
    return f"{moment[:19].replace('T', ' ')} UTC"


def _models(models: Sequence[str] | Mapping[str, str] | None) -> str:
    if models is None or "*" in models:
        return "all"
    if isinstance(models, Mapping):
        return " ".join(f"{name}={target}" for name, target in models.items()) or "none"
    return " ".join(models) or "none"


def _limit(value: int | None) -> str:
    return "no limit" if value is None else json.dumps(value)
