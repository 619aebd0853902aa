"""What an adapter may be called."""

from __future__ import annotations

import re

from .errors import AdapterError

MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:@-]|/(?=[A-Za-z0-9]))*")


def check_name(name: str) -> None:
    """Raise AdapterError unless the name can stand in URLs, metrics and file listings."""
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        shown = name if len(name) <= MAX_NAME_LENGTH else name[:32] + "..."
        raise AdapterError(
            "name",
            f"{shown!r} is not a name: 1 to {MAX_NAME_LENGTH} of letters, digits and . _ : @ - , "
            "starting with a letter or digit, in parts divided by single slashes",
        )
