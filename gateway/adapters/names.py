"""Which names an adapter or an alias of the fleet may have: those that a server allows."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import GatewayError
from ..fleet.versions import FLEET_PREFIX, is_fleet_name

VERBS = ("pin", "unpin", "load", "evict", "rollback", "versions")
"""Last words of paths under ``/admin/adapters/{name}/``."""

MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:@-]|/(?=[A-Za-z0-9]))*")


def check_new_name(name: str, base_names: Collection[str], field: str = "name") -> None:
    """Raise GatewayError 400 for what is no name, 409 for one of the base model's."""
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        shown = name if len(name) <= MAX_NAME_LENGTH else name[:32] + "..."
        raise _refused(
            field,
            f"{shown!r} is not a name: 1 to {MAX_NAME_LENGTH} of letters, digits and . _ : @ - , "
            "starting with a letter or digit, in parts divided by single slashes",
        )
    last = name.rpartition("/")[2]
    if last != name and last in VERBS:
        raise _refused(field, f"{name!r} must not end in /{last}, which is a verb of the API")
    if is_fleet_name(name):
        raise _refused(field, f"{name!r} must not begin with {FLEET_PREFIX}, as versions do")
    if name in base_names:
        raise taken(name, "the base model", field)


def taken(name: str, owner: str, field: str = "name") -> GatewayError:
    """409: the name belongs to something of another kind."""
    problem = f"{field}: {name!r} is the name of {owner}"
    return GatewayError(409, problem, param=field, code="name_taken")


def not_there(name: str, kind: str, field: str = "name") -> GatewayError:
    """404 for an adapter or an alias, to an admin."""
    problem = f"There is no {kind} {name[:200]!r}."
    return GatewayError(404, problem, param=field, code=f"{kind}_not_found")


def version_not_there(name: str, number: int, field: str, kept: str = "") -> GatewayError:
    """404 for a version that is not kept."""
    problem = f"{field}: {name!r} has no version {number}{kept}"
    return GatewayError(404, problem, param=field, code="version_not_found")


def _refused(field: str, problem: str) -> GatewayError:
    return GatewayError(400, f"{field}: {problem}", param=field, code="adapter_refused")
